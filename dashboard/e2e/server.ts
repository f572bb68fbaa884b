import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { DatabaseSync } from 'node:sqlite';
import { PROGRAM, TARGET } from './program.ts';

export const PASSWORD = 'correct horse battery';

/** A server of a test's own, on SQLite, in a folder of its own. */
export class Server {
	token = '';
	/** What the server printed for whoever sets it up. */
	setupToken = '';

	url = '';
	#process: ChildProcess | undefined;

	private constructor(
		private readonly folder: string,
		private readonly environment: NodeJS.ProcessEnv
	) {}

	/** Start one that has an owner, or one that waits to be set up; with these settings. */
	static async start(hasOwner = true, settings: Record<string, string> = {}): Promise<Server> {
		const folder = mkdtempSync(join(tmpdir(), 'picloud-dashboard-'));
		const environment: NodeJS.ProcessEnv = { ...process.env, PICLOUD_LOG: 'error', ...settings };
		if (hasOwner) environment.PICLOUD_OWNER_PASSWORD = PASSWORD;
		const server = new Server(folder, environment);
		await server.launch();
		if (hasOwner) server.token = await server.signIn('owner', PASSWORD);
		return server;
	}

	/** Start the process, again where it was. */
	async launch(): Promise<void> {
		const port = this.url ? new URL(this.url).port : '0';
		const words = ['serve', '--listen', `127.0.0.1:${port}`, '--shutdown-grace-ms', '500'];
		words.push('--data-dir', join(this.folder, 'data'));
		// Compiled code is shared by all tests: compiling the guest takes seconds.
		words.push('--cache-dir', join(TARGET, 'picloud-test-cache'));
		const child = spawn(PROGRAM, words, {
			cwd: this.folder,
			env: this.environment,
			stdio: ['ignore', 'pipe', 'inherit']
		});
		this.#process = child;
		this.url = await new Promise<string>((found, failed) => {
			child.once('exit', (code) => failed(new Error(`the server ended: ${code}`)));
			createInterface(child.stdout).on('line', (line) => {
				const [name, value = ''] = line.split(/ on |: /);
				if (name === 'set-up token') this.setupToken = value;
				if (name === 'listening') found(value);
			});
		});
		await this.until(async () => (await fetch(`${this.url}/readyz`)).ok);
	}

	/** Send the process a signal. */
	signal(name: NodeJS.Signals): void {
		this.#process?.kill(name);
	}

	/** End the process, as a crash does unless told. */
	async kill(name: NodeJS.Signals = 'SIGKILL'): Promise<void> {
		const child = this.#process;
		// One that a test ended, and then failed, does not end again.
		if (!child || child.exitCode !== null || child.signalCode !== null) return;
		const ended = new Promise((done) => child.once('exit', done));
		child.kill(name);
		await ended;
	}

	async stop(): Promise<void> {
		await this.kill('SIGTERM');
		rmSync(this.folder, { recursive: true, force: true });
	}

	async signIn(name: string, password: string): Promise<string> {
		const { token } = await this.api<{ token: string }>('POST /auth/login', { name, password });
		return token;
	}

	/** Call the API as the owner, or with another token. */
	async api<T = void>(endpoint: string, body?: unknown, token = this.token): Promise<T> {
		const [method = '', path = ''] = endpoint.split(' ');
		const headers: Record<string, string> = { 'content-type': 'application/json' };
		if (token) headers.authorization = `Bearer ${token}`;
		const response = await fetch(`${this.url}/api/v1${path}`, {
			method,
			headers,
			...(body === undefined ? {} : { body: JSON.stringify(body) })
		});
		const text = await response.text();
		if (!response.ok) throw new Error(`${endpoint}: ${response.status} ${text}`);
		return (text ? JSON.parse(text) : undefined) as T;
	}

	/** Change the database behind the server's back: for what nothing else can do. */
	sql(statements: string): void {
		const database = new DatabaseSync(join(this.folder, 'data/picloud.db'), { timeout: 10_000 });
		database.exec(statements);
		database.close();
	}

	/** Wait for a condition. */
	async until(holds: () => Promise<boolean>): Promise<void> {
		const end = Date.now() + 120_000;
		while (!(await holds().catch(() => false))) {
			if (Date.now() > end) throw new Error(`waited in vain for ${holds}`);
			await new Promise((done) => setTimeout(done, 50));
		}
	}
}
