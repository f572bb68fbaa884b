import { spawn, type ChildProcess } from 'node:child_process';
import { resolve } from 'node:path';
import { createInterface } from 'node:readline';

const FOLDER = resolve(import.meta.dirname, '../../tests/oidc');

/** The OpenID provider of the end-to-end tests. */
export class Provider {
	private constructor(
		readonly issuer: string,
		private readonly process: ChildProcess
	) {}

	static async start(): Promise<Provider> {
		const child = spawn(process.execPath, ['provider.mjs'], {
			cwd: FOLDER,
			stdio: ['ignore', 'pipe', 'ignore']
		});
		const issuer = await new Promise<string>((found, failed) => {
			child.once('exit', (code) => failed(new Error(`the provider ended: ${code}`)));
			createInterface(child.stdout).on('line', (line) => {
				if (line.startsWith('http://')) found(line);
			});
		});
		return new Provider(issuer, child);
	}

	/** Tell it something, as `provider.mjs` says. */
	async tell(what: 'test' | 'people', body: unknown): Promise<void> {
		await fetch(`${this.issuer}/${what}`, { method: 'POST', body: JSON.stringify(body) });
	}

	async stop(): Promise<void> {
		const ended = new Promise((done) => this.process.once('exit', done));
		this.process.kill();
		await ended;
	}
}
