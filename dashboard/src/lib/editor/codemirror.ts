// All that needs CodeMirror; pages load it when they show an editor, not before.
import { autocompletion, closeBrackets, closeBracketsKeymap, completionKeymap } from '@codemirror/autocomplete';
import { defaultKeymap, history, historyKeymap, indentWithTab } from '@codemirror/commands';
import { json, jsonParseLinter } from '@codemirror/lang-json';
import { bracketMatching, foldGutter, indentOnInput, indentUnit } from '@codemirror/language';
import { linter, lintGutter, lintKeymap, type Diagnostic as Mark } from '@codemirror/lint';
import { unifiedMergeView } from '@codemirror/merge';
import { highlightSelectionMatches, searchKeymap } from '@codemirror/search';
import { EditorState, type Extension, type Text } from '@codemirror/state';
import {
	EditorView,
	drawSelection,
	highlightActiveLine,
	highlightActiveLineGutter,
	keymap,
	lineNumbers
} from '@codemirror/view';
import type { Diagnostic } from '#lib/api/problem.ts';
import { look } from './look.ts';
import { rhai } from './rhai.ts';

export interface Setup {
	root: ShadowRoot;
	text: string;
	language: 'rhai' | 'json';
	label: string;
	readonly: boolean;
	/** The text that this one is compared with. */
	original?: string | undefined;
	/** Tells what is wrong with a text. */
	validate?: ((text: string) => Promise<Diagnostic[]>) | undefined;
	onchange: (text: string) => void;
	onsave: () => void;
	onrun: () => void;
}

/** Where a diagnostic is in a text. */
function place(text: Text, { line, column }: Diagnostic): { from: number; to: number } {
	if (!line || line > text.lines) return { from: 0, to: Math.min(1, text.length) };
	const { from, to, length } = text.line(line);
	const start = from + Math.min(Math.max((column ?? 1) - 1, 0), length);
	return start < to ? { from: start, to: start + 1 } : { from: Math.max(from, to - 1), to };
}

function checks({ language, validate }: Setup): Extension {
	if (language === 'json') return [linter(jsonParseLinter()), lintGutter()];
	if (!validate) return [];
	const mark = async (view: EditorView): Promise<Mark[]> => {
		const text = view.state.doc;
		const found = await validate(text.toString()).catch(() => []);
		return found.map((diagnostic) => ({
			...place(text, diagnostic),
			severity: 'error',
			message: diagnostic.message
		}));
	};
	return [linter(mark, { delay: 400 }), lintGutter()];
}

/** Make an editor in a shadow root: there its styles are constructed sheets, which our policy allows. */
export function edit(setup: Setup): EditorView {
	const act = (what: () => void) => () => {
		what();
		return true;
	};
	const own = keymap.of([
		{ key: 'Mod-s', run: act(setup.onsave), preventDefault: true },
		{ key: 'Mod-Enter', run: act(setup.onrun), preventDefault: true }
	]);
	const compared =
		setup.original === undefined
			? []
			: unifiedMergeView({
					original: setup.original,
					mergeControls: false,
					collapseUnchanged: { margin: 3, minSize: 8 }
				});
	const state = EditorState.create({
		doc: setup.text,
		extensions: [
			own,
			lineNumbers(),
			history(),
			foldGutter(),
			drawSelection(),
			indentOnInput(),
			indentUnit.of(setup.language === 'json' ? '  ' : '    '),
			bracketMatching(),
			closeBrackets(),
			autocompletion(),
			highlightSelectionMatches(),
			setup.readonly ? [] : [highlightActiveLine(), highlightActiveLineGutter()],
			// Escape, then Tab leaves the editor: for whoever has no mouse.
			keymap.of([
				...closeBracketsKeymap,
				...defaultKeymap,
				...searchKeymap,
				...historyKeymap,
				...completionKeymap,
				...lintKeymap,
				...(setup.readonly ? [] : [indentWithTab])
			]),
			setup.language === 'json' ? json() : rhai(),
			look,
			checks(setup),
			compared,
			EditorState.readOnly.of(setup.readonly),
			EditorView.contentAttributes.of({ 'aria-label': setup.label, tabindex: '0' }),
			EditorView.lineWrapping,
			EditorView.updateListener.of((update) => {
				if (update.docChanged) setup.onchange(update.state.doc.toString());
			})
		]
	});
	return new EditorView({ state, root: setup.root, parent: setup.root });
}

/** Put the cursor somewhere, in the middle of the view. */
export function point(view: EditorView, line: number, column: number): void {
	const { from } = place(view.state.doc, { message: '', line, column });
	view.dispatch({
		selection: { anchor: from },
		effects: EditorView.scrollIntoView(from, { y: 'center' })
	});
	view.focus();
}
