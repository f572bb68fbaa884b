export type Choice = 'system' | 'light' | 'dark';

const KEY = 'picloud.theme';
const system = matchMedia('(prefers-color-scheme: dark)');

/** Light or dark; static/theme.js applies the choice before the first paint. */
class Theme {
	choice = $state<Choice>((localStorage.getItem(KEY) as Choice | null) ?? 'system');
	/** What the page shows: plots are drawn anew when it changes. */
	shown = $state(document.documentElement.dataset.theme);

	constructor() {
		system.addEventListener('change', () => this.#apply());
	}

	choose(choice: Choice): void {
		this.choice = choice;
		if (choice === 'system') localStorage.removeItem(KEY);
		else localStorage.setItem(KEY, choice);
		this.#apply();
	}

	#apply(): void {
		const dark = this.choice === 'system' ? system.matches : this.choice === 'dark';
		this.shown = dark ? 'dark' : 'light';
		document.documentElement.dataset.theme = this.shown;
	}
}

export const theme = new Theme();
