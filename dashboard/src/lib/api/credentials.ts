const KEY = 'picloud.token';

/** How this tab shows the server who it is. */
export const credentials = {
	headers(): Record<string, string> {
		const token = sessionStorage.getItem(KEY);
		return token ? { authorization: `Bearer ${token}` } : {};
	},
	keep(token: string) {
		sessionStorage.setItem(KEY, token);
	},
	forget() {
		sessionStorage.removeItem(KEY);
	},
	get present(): boolean {
		return sessionStorage.getItem(KEY) !== null;
	},
	/** What happens when the server refuses them; the session sets it. */
	onRefused: () => {}
};
