import { Problem } from './api/problem.ts';

export interface Toast {
	id: number;
	tone: 'good' | 'bad';
	title: string;
	detail: string | undefined;
}

/** Short messages at the edge of the page; they leave by themselves. */
class Toasts {
	all = $state<Toast[]>([]);
	#next = 0;

	say(title: string, detail?: string): void {
		this.#add({ id: this.#next++, tone: 'good', title, detail });
	}

	fail(error: unknown): void {
		const problem = Problem.of(error);
		this.#add({ id: this.#next++, tone: 'bad', title: problem.title, detail: problem.message });
	}

	dismiss(id: number): void {
		this.all = this.all.filter((toast) => toast.id !== id);
	}

	#add(toast: Toast): void {
		this.all.push(toast);
		setTimeout(() => this.dismiss(toast.id), toast.tone === 'bad' ? 12_000 : 5_000);
	}
}

export const toasts = new Toasts();
