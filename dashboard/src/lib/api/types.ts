// What the API answers, under the names that pages use. `npm run types` makes schema.d.ts from the
// OpenAPI document of the binary, each time before the types are checked: so they cannot drift.
import type { components } from './schema.d.ts';

type Schemas = components['schemas'];

export interface Page<T> {
	items: T[];
	next_cursor: string | null;
}

export type InstanceRole = Schemas['Role'];
export type AppRole = Schemas['AppRole'];
export type Me = Schemas['Me'];
export type App = Schemas['App'];
export type Limits = Schemas['ScriptLimits'];
export type Script = Schemas['Script'] & { source?: string | null };
export type ScriptVersion = Schemas['ScriptVersion'];
export type LogLine = Schemas['LogLine'];
export type ExecutionError = Schemas['ExecutionError'];
export type Run = Schemas['Executed'];
export type Route = Schemas['Route'];
export type Cors = Schemas['RouteCors'];
export type Retry = Schemas['RetryPolicy'];
export type Trigger = Schemas['Trigger'];
export type Execution = Schemas['Execution'];
export type TreeNode = Schemas['ExecutionBranch'];
export type Secret = Schemas['Secret'];
export type OpenTopic = Schemas['OpenTopic'];
export type Attempt = Schemas['Attempt'];
export type DeadLetter = Schemas['DeadLetter'];
export type DeadLetterWithHistory = Schemas['DeadLetterWithHistory'];
