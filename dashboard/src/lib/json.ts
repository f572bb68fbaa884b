import { createScanner, findNodeAtLocation, format, parseTree, type Node } from 'jsonc-parser';

/**
 * JSON as it was written. JavaScript's own values hold neither `9007199254740993` nor the zero of
 * `10.0`, nor the order of all keys: what somebody reads here, and may save again, stays text.
 */
export class Json {
	#root: Node | undefined;

	constructor(readonly text: string) {}

	/** What somebody typed, where it is JSON. */
	static typed(text: string): Json | null {
		try {
			JSON.parse(text);
			return new Json(text);
		} catch {
			return null;
		}
	}

	/** The value at a place in it, as it stands there. */
	at(...path: (string | number)[]): Json | null {
		this.#root ??= parseTree(this.text);
		const found = this.#root && findNodeAtLocation(this.#root, path);
		return found ? new Json(this.text.slice(found.offset, found.offset + found.length)) : null;
	}

	/** With each member on a line of its own. */
	get laidOut(): string {
		const edits = format(this.text, undefined, { tabSize: 2, insertSpaces: true, eol: '\n' });
		let [done, at] = ['', 0];
		for (const { offset, length, content } of edits) {
			done += this.text.slice(at, offset) + content;
			at = offset + length;
		}
		return done + this.text.slice(at);
	}

	/** Without the white space between its parts. */
	get compact(): string {
		const scanner = createScanner(this.text, true);
		let text = '';
		let part = '';
		do {
			scanner.scan();
			part = this.text.slice(scanner.getTokenOffset(), scanner.getTokenOffset() + scanner.getTokenLength());
			text += part;
		} while (part);
		return text;
	}
}

/** A body as JSON, in which what was written stays so: it may be the body itself, or a member of it. */
export function written(body: unknown): string {
	if (body instanceof Json) return body.text;
	const members = typeof body === 'object' && body !== null ? Object.entries(body) : [];
	if (!members.some(([, value]) => value instanceof Json)) return JSON.stringify(body);
	const said = members
		.filter(([, value]) => value !== undefined)
		.map(([name, value]) => `${JSON.stringify(name)}:${written(value)}`);
	return `{${said.join(',')}}`;
}
