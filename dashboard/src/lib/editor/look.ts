import { HighlightStyle, syntaxHighlighting } from '@codemirror/language';
import { EditorView } from '@codemirror/view';
import { tags } from '@lezer/highlight';

/** The editor in the page's colours, which reach into its shadow root as variables. */
export const look = [
	EditorView.theme({
		'&': { height: '100%', backgroundColor: 'var(--surface)', color: 'var(--ink)' },
		'&.cm-focused': { outline: 'none' },
		'.cm-scroller': {
			fontFamily: "'Geist Mono Variable', ui-monospace, monospace",
			fontSize: '13px',
			lineHeight: '1.6'
		},
		'.cm-content': { caretColor: 'var(--accent)', padding: '10px 0' },
		'.cm-gutters': {
			backgroundColor: 'var(--surface)',
			color: 'var(--ink-3)',
			border: 'none',
			paddingLeft: '6px'
		},
		'.cm-activeLine': { backgroundColor: 'color-mix(in oklab, var(--accent) 5%, transparent)' },
		'.cm-activeLineGutter': { backgroundColor: 'transparent', color: 'var(--ink)' },
		'&.cm-focused .cm-selectionBackground, .cm-selectionBackground': {
			backgroundColor: 'color-mix(in oklab, var(--accent) 22%, transparent) !important'
		},
		'.cm-cursor': { borderLeftColor: 'var(--accent)' },
		'&.cm-focused .cm-matchingBracket': {
			backgroundColor: 'color-mix(in oklab, var(--accent) 18%, transparent)'
		},
		'.cm-tooltip': {
			backgroundColor: 'var(--surface)',
			color: 'var(--ink)',
			border: '1px solid var(--line-strong)',
			borderRadius: '8px',
			overflow: 'hidden'
		},
		'.cm-tooltip-autocomplete > ul > li[aria-selected]': {
			backgroundColor: 'var(--accent-soft)',
			color: 'var(--ink)'
		},
		'.cm-completionDetail': { color: 'var(--ink-3)', fontStyle: 'normal' },
		'.cm-diagnostic-error': { borderLeftColor: 'var(--bad)' },
		'.cm-panels': { backgroundColor: 'var(--sunken)', color: 'var(--ink)' },
		'.cm-changedLine': { backgroundColor: 'var(--good-soft) !important' },
		'.cm-deletedChunk': { backgroundColor: 'var(--bad-soft) !important' },
		// The lines are coloured; a second colour in them would leave too little contrast.
		'.cm-changedText, .cm-deletedText': { background: 'none !important' }
	}),
	syntaxHighlighting(
		HighlightStyle.define([
			{ tag: tags.comment, color: 'var(--ink-3)' },
			{ tag: [tags.string, tags.special(tags.string)], color: 'var(--good)' },
			{ tag: [tags.number, tags.atom, tags.bool, tags.null], color: 'var(--warn)' },
			{ tag: tags.keyword, color: 'var(--accent)', fontWeight: '500' },
			{ tag: [tags.namespace, tags.special(tags.variableName)], color: 'var(--accent)' },
			{ tag: tags.function(tags.variableName), color: 'var(--ink)', fontWeight: '500' },
			{ tag: tags.propertyName, color: 'var(--ink-2)' },
			{ tag: [tags.operator, tags.punctuation], color: 'var(--ink-2)' }
		])
	)
];
