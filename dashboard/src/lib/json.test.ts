import { expect, test } from 'vitest';
import { Json, written } from './json.ts';

/** What JavaScript's own values would change. */
const ODD =
	'{"id":9007199254740993,"n":-18446744073709551616,"price":10.0,"e":1E+2,"tiny":5e-324,"long":0.1000000000000000055511151231257827,"2":1,"1":2,"__proto__":{"a":1},"a":1,"a":2,"s":"\\u00e9 \\/ \\ud83d\\ude00","in":[[],{},[10.00]]}';

test('what is laid out and put together again is what was written', () => {
	expect(new Json(new Json(ODD).laidOut).compact).toBe(ODD);
	expect(new Json('{"a":[1.0,{}],"b":[]}').laidOut).toBe(
		'{\n  "a": [\n    1.0,\n    {}\n  ],\n  "b": []\n}'
	);
	expect(new Json(' { "a" : [ 1 , "x  y" ] } ').compact).toBe('{"a":[1,"x  y"]}');
	for (const plain of ['10.0', '"a"', 'null', '9007199254740993', '{}', '[]']) {
		expect(new Json(plain).laidOut).toBe(plain);
		expect(new Json(plain).compact).toBe(plain);
	}
});

test('a part stands as it stood in the whole', () => {
	const page = new Json(`{"items":[{"key":"a","value":${ODD}},{"key":"b","value": 10.0 }],"next_cursor":null}`);
	expect(page.at('items', 0, 'value')?.text).toBe(ODD);
	expect(page.at('items', 1, 'value')?.text).toBe('10.0');
	expect(page.at('items', 2, 'value')).toBe(null);
	expect(page.at('next_cursor')?.text).toBe('null');
});

test('only JSON is JSON', () => {
	for (const text of ['', '{', "{'a':1}", '{"a":1,}', '// no\n1', '01', '1 2', 'NaN']) {
		expect(Json.typed(text), text).toBe(null);
	}
	expect(Json.typed(' 10.0\n')?.text).toBe(' 10.0\n');
});

test('a body keeps what was written in it', () => {
	expect(written(new Json('10.0'))).toBe('10.0');
	expect(written({ message: new Json('[9007199254740993]'), ephemeral: false, not: undefined })).toBe(
		'{"message":[9007199254740993],"ephemeral":false}'
	);
	expect(written({ a: [1], b: undefined })).toBe('{"a":[1]}');
	expect([written(null), written('a'), written([1])]).toEqual(['null', '"a"', '[1]']);
});

test('a large payload is laid out at once', () => {
	const large = `[${Array.from({ length: 100_000 }, (_, n) => `{"n":${n}.0}`).join(',')}]`;
	const begun = performance.now();
	expect(new Json(large).laidOut.split('\n').length).toBe(300_002);
	expect(performance.now() - begun).toBeLessThan(5_000);
});
