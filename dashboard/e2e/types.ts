// Makes src/lib/api/schema.d.ts of the OpenAPI document of the binary: `npm run types`.
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import openapiTS, { astToString } from 'openapi-typescript';
import { PROGRAM } from './program.ts';

export const SCHEMA = join(import.meta.dirname, '../src/lib/api/schema.d.ts');

/** The types of what the API takes and answers. */
export async function types(): Promise<string> {
	const document = JSON.parse(execFileSync(PROGRAM, ['openapi'], { encoding: 'utf8' }));
	// What has a default may be left out.
	const made = await openapiTS(document, { defaultNonNullable: false });
	return `// Made by \`npm run types\` of the binary's OpenAPI document.\n${astToString(made)}`;
}

if (import.meta.main) writeFileSync(SCHEMA, await types());
