import { join, resolve } from 'node:path';

/** Where builds go. */
export const TARGET = resolve(import.meta.dirname, '../../target');
/** The binary that is tested. */
export const PROGRAM = process.env.PICLOUD_BIN ?? join(TARGET, 'debug/picloud');
