import { completeFromList, snippetCompletion, type Completion } from '@codemirror/autocomplete';
import { LanguageSupport, StreamLanguage, type StreamParser } from '@codemirror/language';

const KEYWORDS = new Set(
	'let const if else switch while loop do until for in break continue return throw try catch fn this private is_shared Fn call curry type_of print debug'.split(
		' '
	)
);
const MODULES = new Set(
	'kv pubsub log dead_letters regex random time secrets json base64 hex url'.split(' ')
);

interface State {
	/** How deep in block comments, which nest. */
	comment: number;
	/** In a string between these quotes. */
	quote: '"' | '`' | null;
}

const parser: StreamParser<State> = {
	name: 'rhai',
	startState: () => ({ comment: 0, quote: null }),
	token(stream, state) {
		if (state.comment > 0) {
			if (stream.match('/*')) state.comment++;
			else if (stream.match('*/')) state.comment--;
			else stream.next();
			return 'comment';
		}
		if (state.quote) return inString(stream, state);
		if (stream.eatSpace()) return null;
		if (stream.match('//')) {
			stream.skipToEnd();
			return 'comment';
		}
		if (stream.match('/*')) {
			state.comment = 1;
			return 'comment';
		}
		const quote = stream.peek();
		if (quote === '"' || quote === '`') {
			stream.next();
			state.quote = quote;
			return inString(stream, state);
		}
		if (stream.match(/^'(\\.[^']*|[^'\\])'/)) return 'string';
		if (stream.match(/^(0x[\da-f_]+|0o[0-7_]+|0b[01_]+|\d[\d_]*(\.\d[\d_]*)?(e[+-]?\d+)?)/i)) {
			return 'number';
		}
		if (stream.match(/^[A-Za-z_]\w*/)) {
			const word = stream.current();
			if (word === 'true' || word === 'false') return 'atom';
			if (word === 'ctx') return 'variableName.special';
			if (KEYWORDS.has(word)) return 'keyword';
			if (MODULES.has(word) && stream.match('::', false)) return 'namespace';
			if (stream.match(/^\s*\(/, false)) return 'variableName.function';
			if (stream.match(/^\s*:(?!:)/, false)) return 'propertyName';
			return 'variableName';
		}
		if (stream.match(/^[-+*/%=<>!&|^~?]+/)) return 'operator';
		stream.next();
		return 'punctuation';
	},
	languageData: {
		commentTokens: { line: '//', block: { open: '/*', close: '*/' } },
		closeBrackets: { brackets: ['(', '[', '{', '"', '`'] },
		indentOnInput: /^\s*[})\]]$/
	}
};

function inString(stream: Parameters<StreamParser<State>['token']>[0], state: State): string {
	while (!stream.eol()) {
		const next = stream.next();
		if (next === '\\' && state.quote === '"') stream.next();
		else if (next === state.quote) {
			state.quote = null;
			break;
		}
	}
	// A string in double quotes ends with its line at the latest.
	if (state.quote === '"' && stream.eol()) state.quote = null;
	return 'string';
}

const call = (template: string, detail: string): Completion =>
	snippetCompletion(template, {
		label: template.replace(/\$\{(\w*)\}/g, '$1'),
		detail,
		type: 'function'
	});
const property = (label: string, detail: string): Completion => ({
	label,
	detail,
	type: 'property'
});

/** What docs/rhai-sdk.md describes. */
const SDK: Completion[] = [
	call('kv::collection("${name}")', 'a collection'),
	call('pubsub::publish_durable("${topic}", ${message})', 'the id of the message'),
	call('pubsub::publish_ephemeral("${topic}", ${message})', 'the id of the message'),
	call('pubsub::subscriber_token(["${topic}"], ${3600})', 'a token for a browser'),
	call('log::info("${message}", #{ ${} })', 'a line of the log'),
	call('log::warn("${message}")', 'a line of the log'),
	call('log::error("${message}")', 'a line of the log'),
	call('log::debug("${message}")', 'a line of the log'),
	call('secrets::get("${name}")', 'a secret of the app, or ()'),
	call('dead_letters::replay(${id})', 'the id of the new delivery'),
	call('dead_letters::resolve(${id}, "ignored")', 'nothing'),
	call('dead_letters::list()', 'entries and a cursor'),
	call('regex::is_match("${pattern}", ${text})', 'bool'),
	call('regex::find("${pattern}", ${text})', 'the first match, or ()'),
	call('regex::find_all("${pattern}", ${text})', 'strings'),
	call('regex::split("${pattern}", ${text})', 'strings'),
	call('regex::captures("${pattern}", ${text})', 'a map, or ()'),
	call('regex::replace("${pattern}", ${text}, "${with}")', 'a string'),
	call('random::int(${from}, ${to})', 'both included'),
	call('random::float()', 'from 0 up to 1'),
	call('random::bytes(${n})', 'a blob'),
	call('random::uuid()', 'version 4'),
	call('random::text(${n})', 'URL-safe characters'),
	call('random::pick(${array})', 'one of its items'),
	call('time::now()', 'RFC 3339 in UTC'),
	call('time::now_ms()', 'milliseconds since 1970'),
	call('time::parse(${text})', 'milliseconds'),
	call('time::format(${ms})', 'RFC 3339'),
	call('json::parse(${text})', 'a value'),
	call('json::stringify(${value})', 'a string'),
	call('json::pretty(${value})', 'a string'),
	call('base64::encode(${x})', 'a string'),
	call('base64::decode(${text})', 'a blob'),
	call('base64::decode_text(${text})', 'a string'),
	call('base64::encode_url(${x})', 'a string'),
	call('base64::decode_url(${text})', 'a blob'),
	call('hex::encode(${x})', 'a string'),
	call('hex::decode(${text})', 'a blob'),
	call('url::encode(${text})', 'a string'),
	call('url::decode(${text})', 'a string'),
	call('url::parse_query(${text})', 'a map'),
	call('url::build_query(${map})', 'a string'),
	call('sleep(${seconds})', 'waits'),
	...[
		'ctx.request.method',
		'ctx.request.path',
		'ctx.request.params',
		'ctx.request.rest',
		'ctx.request.query',
		'ctx.request.headers',
		'ctx.request.body'
	].map((label) => property(label, 'the request')),
	property('ctx.event', 'what fired the script'),
	property('ctx.event.kv', 'collection, key, value, old_value'),
	property('ctx.event.pubsub', 'topic, message, message_id, published_at'),
	property('ctx.event.id', 'the same for every attempt'),
	property('ctx.attempt', 'from 1'),
	property('ctx.execution_id', 'this execution'),
	property('ctx.principal', 'id, name, kind, or ()'),
	property('ctx.invocation_type', 'http, execute, kv, …'),
	property('ctx.app_slug', 'the app'),
	snippetCompletion('#{ statusCode: ${200}, headers: #{ "content-type": "${text/plain}" }, body: ${body} }', {
		label: 'answer',
		detail: 'status, headers, body',
		type: 'text'
	}),
	...[...KEYWORDS].map((label): Completion => ({ label, type: 'keyword' }))
];

/** Rhai: highlighting, and completion of the SDK. */
export function rhai(): LanguageSupport {
	const language = StreamLanguage.define(parser);
	const words = completeFromList(SDK);
	const autocomplete = language.data.of({ autocomplete: words });
	return new LanguageSupport(language, autocomplete);
}
