// The OpenID provider of the end-to-end tests: a certified one, with its own pages for signing in.
//
// It signs in whoever was told of by POST /people, with their claims, by what `sub` calls them and
// any password. It prints its issuer once it listens. What the tests need besides
// is set by POST /test, which answers the ID token that was issued last and the key:
// - redirect_uris: where it sends browsers back to;
// - id_token: put into the next answers in place of the true one;
// - key: what it signs with from now on; "new" makes one.

import { createHash, generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

function newKey() {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const jwk = privateKey.export({ format: 'jwk' });
  const kid = createHash('sha256').update(jwk.n).digest('hex').slice(0, 8);
  return { ...jwk, kid, use: 'sig', alg: 'RS256' };
}

let issuer;
let answer;
let key = newKey();
let redirectUris = ['http://127.0.0.1:9/'];
let forged;
const people = new Map();
let last;

function begin() {
  const client = (id) => ({ client_id: id, client_secret: 'a secret of the test', redirect_uris: redirectUris });
  const provider = new Provider(issuer, {
    clients: [client('picloud'), client('another')],
    jwks: { keys: [key] },
    cookies: { keys: ['of no interest'] },
    pkce: { required: () => true },
    claims: { openid: ['sub'], profile: ['preferred_username', 'groups'], email: ['email', 'email_verified'] },
    ttl: { AccessToken: 3600, AuthorizationCode: 60, Grant: 3600, IdToken: 600, Interaction: 3600, Session: 3600 },
    findAccount: (_, id) => ({ accountId: id, claims: () => people.get(id) }),
  });
  provider.use(async (context, next) => {
    await next();
    if (context.oidc?.route === 'token' && context.body?.id_token) {
      last = context.body.id_token;
      context.body.id_token = forged ?? last;
    }
  });
  answer = provider.callback();
}

async function json(request) {
  let body = '';
  for await (const piece of request) body += piece;
  return JSON.parse(body);
}

function prepare(set) {
  forged = set.id_token;
  redirectUris = set.redirect_uris ?? redirectUris;
  if (set.key) key = set.key === 'new' ? newKey() : set.key;
  if (set.key || set.redirect_uris) begin();
  return JSON.stringify({ id_token: last, key });
}

const server = createServer(async (request, response) => {
  if (request.url === '/test') response.end(prepare(await json(request)));
  else if (request.url === '/people') {
    const claims = await json(request);
    people.set(claims.sub, claims);
    response.end();
  } else answer(request, response);
});

server.listen(0, '127.0.0.1', () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  begin();
  console.log(issuer);
});
