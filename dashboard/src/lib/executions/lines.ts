import type { LogLine } from '#lib/api/types.ts';
import type { Json } from '#lib/json.ts';

/** A line that a script logged; its fields as it wrote them. */
export type Line = Omit<LogLine, 'fields'> & { fields: Json | null };

/** The lines of an answer, which stand at `logs` in it. */
export function linesOf(logs: LogLine[], json: Json): Line[] {
	return logs.map((line, nth) => lineOf(line, json.at('logs', nth, 'fields')));
}

/** One of them. */
export function lineOf(line: LogLine, fields: Json | null): Line {
	const hasFields = line.fields && Object.keys(line.fields).length > 0;
	return { ...line, fields: hasFields ? fields : null };
}
