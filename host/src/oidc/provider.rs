//! The provider: where to send a browser, and what a code is worth.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreErrorResponseType, CoreGenderClaim, CoreJsonWebKey,
    CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreProviderMetadata,
    CoreResponseType, CoreRevocableToken, CoreRevocationErrorResponse,
    CoreTokenIntrospectionResponse, CoreTokenType,
};
use openidconnect::{
    AccessTokenHash, AdditionalClaims, AuthenticationFlow, AuthorizationCode,
    ClaimsVerificationError, Client, ClientId, ClientSecret, CsrfToken, DiscoveryError,
    EmptyExtraTokenFields, EndpointMaybeSet, EndpointNotSet, EndpointSet, HttpRequest,
    HttpResponse, IdTokenFields, IssuerUrl, Nonce, OAuth2TokenResponse, PkceCodeChallenge,
    PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope, SignatureVerificationError,
    StandardErrorResponse, StandardTokenResponse, TokenResponse, UserInfoClaims,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::attempt::Attempt;
use super::{OidcError, Settings};

/// How long the provider may take for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;
/// For how long what the provider says of itself is believed.
const KEEP: Duration = Duration::from_secs(3600);
/// How soon it is asked anew because a key is not known, or because it did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// All claims that no standard names.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Claims {
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl AdditionalClaims for Claims {}

type Tokens = StandardTokenResponse<
    IdTokenFields<
        Claims,
        EmptyExtraTokenFields,
        CoreGenderClaim,
        CoreJweContentEncryptionAlgorithm,
        CoreJwsSigningAlgorithm,
    >,
    CoreTokenType,
>;

type Us = Client<
    Claims,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    Tokens,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

/// Whom the provider vouches for.
#[derive(Debug, Clone)]
pub struct Person {
    /// What it calls them, for ever.
    pub subject: String,
    /// The name that they would have here.
    pub name: String,
    /// Their e-mail address, if the provider verified it.
    pub verified_email: Option<String>,
    /// Their groups.
    pub groups: Vec<String>,
}

/// The provider that people of this instance sign in at.
pub struct Provider {
    /// What is set about it.
    pub settings: Settings,
    issuer: IssuerUrl,
    secret: Option<ClientSecret>,
    agent: ureq::Agent,
    known: Mutex<Known>,
}

/// What the provider said of itself last.
#[derive(Default)]
struct Known {
    metadata: Option<(Arc<CoreProviderMetadata>, Instant)>,
    failed: Option<(String, Instant)>,
}

fn http(agent: &ureq::Agent) -> impl Fn(HttpRequest) -> Result<HttpResponse, ureq::Error> {
    |request| {
        let (parts, mut body) = agent.run(request)?.into_parts();
        let bytes = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(HttpResponse::from_parts(parts, bytes))
    }
}

impl Provider {
    /// The provider that is set. It is not asked anything yet, so that an instance starts without
    /// it.
    ///
    /// # Errors
    /// When the issuer is no URL, or the file of the secret cannot be read.
    pub fn new(settings: Settings) -> anyhow::Result<Self> {
        let issuer = IssuerUrl::new(settings.issuer.clone()).context("oidc_issuer")?;
        let secret = match (&settings.client_secret, &settings.client_secret_file) {
            (Some(secret), _) => Some(secret.clone()),
            (None, Some(path)) => {
                let text = fs::read_to_string(path);
                let text =
                    text.with_context(|| format!("oidc_client_secret_file {}", path.display()))?;
                Some(text.trim().to_owned())
            }
            (None, None) => None,
        };
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            // What the provider does not answer itself is none of its answers.
            .max_redirects(0)
            .build()
            .new_agent();
        Ok(Self {
            settings,
            issuer,
            secret: secret.map(ClientSecret::new),
            agent,
            known: Mutex::default(),
        })
    }

    /// Where to send a browser that begins `attempt` and shall come back to `redirect_url`.
    ///
    /// # Errors
    /// When the provider cannot be asked.
    pub async fn page(&self, attempt: &Attempt, redirect_url: String) -> Result<String, OidcError> {
        let us = self.us(redirect_url, KEEP).await?;
        let verifier = PkceCodeVerifier::new(attempt.verifier());
        let (state, nonce) = (attempt.state(), attempt.nonce());
        let scopes = self.settings.scopes.iter().cloned().map(Scope::new);
        let (url, ..) = us
            .authorize_url(
                AuthenticationFlow::<CoreResponseType>::AuthorizationCode,
                || CsrfToken::new(state),
                || Nonce::new(nonce),
            )
            .add_scopes(scopes)
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier))
            .url();
        Ok(url.to_string())
    }

    /// Whom the provider vouches for with a code that it gave to the browser of `attempt`.
    ///
    /// # Errors
    /// When the provider does not take the code, cannot be asked, or proves nothing.
    pub async fn redeem(
        &self,
        code: String,
        attempt: &Attempt,
        redirect_url: String,
    ) -> Result<Person, OidcError> {
        let us = self.us(redirect_url.clone(), KEEP).await?;
        let (asked, agent) = (us.clone(), self.agent.clone());
        let verifier = PkceCodeVerifier::new(attempt.verifier());
        let tokens = blocking(move || {
            asked
                .exchange_code(AuthorizationCode::new(code))
                .map_err(|error| OidcError::Untrusted(error.to_string()))?
                .set_pkce_verifier(verifier)
                .request(&http(&agent))
                .map_err(refused)
        });
        let tokens = tokens.await?;
        let nonce = Nonce::new(attempt.nonce());
        let (us, claims) = match claims(&us, &tokens, &nonce) {
            // The provider has new keys.
            Err(ClaimsVerificationError::SignatureVerification(
                SignatureVerificationError::NoMatchingKey,
            )) => {
                let us = self.us(redirect_url, ASK_AGAIN).await?;
                let claims = claims(&us, &tokens, &nonce);
                (us, claims)
            }
            claims => (us, claims),
        };
        let claims = claims.map_err(|error| OidcError::Untrusted(chain(&error)))?;
        let mut person = Person {
            subject: claims.subject().to_string(),
            name: String::new(),
            verified_email: None,
            groups: groups(
                &claims.additional_claims().others,
                &self.settings.groups_claim,
            ),
        };
        let mut names = vec![claims.preferred_username().map(|name| name.to_string())];
        let mut email = claims.email().map(|email| email.to_string());
        let mut verified = claims.email_verified().unwrap_or(false);
        // Most providers keep an ID token short and tell the rest when asked.
        let (subject, agent) = (claims.subject().clone(), self.agent.clone());
        let access = tokens.access_token().clone();
        let told = blocking(move || {
            let Ok(asked) = us.user_info(access, Some(subject)) else {
                return Ok(None);
            };
            let told: UserInfoClaims<Claims, CoreGenderClaim> = asked
                .request(&http(&agent))
                .map_err(|error| OidcError::Untrusted(chain(&error)))?;
            Ok(Some(told))
        });
        if let Some(told) = told.await? {
            names.push(told.preferred_username().map(|name| name.to_string()));
            if let Some(told_email) = told.email() {
                email = Some(told_email.to_string());
                verified = told.email_verified().unwrap_or(false);
            }
            let others = &told.additional_claims().others;
            person
                .groups
                .extend(groups(others, &self.settings.groups_claim));
        }
        person.verified_email = email.filter(|_| verified);
        let name = names.into_iter().flatten().next();
        let name = name.or_else(|| person.verified_email.clone());
        person.name = name.unwrap_or_else(|| person.subject.clone());
        Ok(person)
    }

    /// We, as the provider sees us, by what it said of itself within `max_age`.
    async fn us(&self, redirect_url: String, max_age: Duration) -> Result<Us, OidcError> {
        let metadata = self.metadata(max_age).await?;
        let redirect_url = RedirectUrl::new(redirect_url);
        let redirect_url = redirect_url.map_err(|error| OidcError::Untrusted(error.to_string()))?;
        let client_id = ClientId::new(self.settings.client_id.clone());
        let us =
            Client::from_provider_metadata((*metadata).clone(), client_id, self.secret.clone());
        Ok(us.set_redirect_uri(redirect_url))
    }

    async fn metadata(&self, max_age: Duration) -> Result<Arc<CoreProviderMetadata>, OidcError> {
        // Whoever comes while it is asked waits for that answer.
        let mut known = self.known.lock().await;
        if let Some((metadata, at)) = &known.metadata
            && at.elapsed() < max_age
        {
            return Ok(metadata.clone());
        }
        if let Some((problem, at)) = &known.failed
            && at.elapsed() < ASK_AGAIN
        {
            return Err(OidcError::Unreachable(problem.clone()));
        }
        let (issuer, agent) = (self.issuer.clone(), self.agent.clone());
        let discovered = blocking(move || {
            CoreProviderMetadata::discover(&issuer, &http(&agent)).map_err(|error| match error {
                DiscoveryError::Request(_) => OidcError::Unreachable(chain(&error)),
                _ => OidcError::Untrusted(chain(&error)),
            })
        });
        match discovered.await {
            Ok(metadata) => {
                let metadata = Arc::new(metadata);
                known.metadata = Some((metadata.clone(), Instant::now()));
                known.failed = None;
                Ok(metadata)
            }
            Err(error) => {
                if let OidcError::Unreachable(problem) = &error {
                    known.failed = Some((problem.clone(), Instant::now()));
                }
                Err(error)
            }
        }
    }
}

/// Ask the provider on a thread that may wait.
async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, OidcError> + Send + 'static,
) -> Result<T, OidcError> {
    let asked = tokio::task::spawn_blocking(ask).await;
    asked.unwrap_or_else(|error| Err(OidcError::Untrusted(error.to_string())))
}

type IdTokenClaims = openidconnect::IdTokenClaims<Claims, CoreGenderClaim>;

/// What the ID token says, once its signature, issuer, audience, time and nonce are checked.
fn claims<'t>(
    us: &Us,
    tokens: &'t Tokens,
    nonce: &Nonce,
) -> Result<&'t IdTokenClaims, ClaimsVerificationError> {
    let other = |problem: &str| ClaimsVerificationError::Other(problem.to_owned());
    let token = tokens
        .id_token()
        .ok_or_else(|| other("there is no ID token"))?;
    let verifier = us.id_token_verifier();
    let claims = token.claims(&verifier, nonce)?;
    if let Some(expected) = claims.access_token_hash() {
        let algorithm = token
            .signing_alg()
            .map_err(|error| other(&error.to_string()))?;
        let key = token
            .signing_key(&verifier)
            .map_err(ClaimsVerificationError::SignatureVerification)?;
        let hash = AccessTokenHash::from_token(tokens.access_token(), algorithm, key);
        let hash = hash.map_err(|error| other(&error.to_string()))?;
        if hash != *expected {
            return Err(other("the access token is not the ID token's"));
        }
    }
    Ok(claims)
}

/// Why there are no tokens.
fn refused(
    error: RequestTokenError<ureq::Error, StandardErrorResponse<CoreErrorResponseType>>,
) -> OidcError {
    match error {
        RequestTokenError::ServerResponse(said) => OidcError::Refused(said.error().to_string()),
        RequestTokenError::Request(error) => OidcError::Unreachable(chain(&error)),
        other => OidcError::Untrusted(chain(&other)),
    }
}

/// An error with all that caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Somebody's groups: a list of names, or one name. A dot in the claim's name leads into objects,
/// where no claim has that very name.
fn groups(claims: &Map<String, Value>, claim: &str) -> Vec<String> {
    let found = claims.get(claim).or_else(|| {
        let mut steps = claim.split('.');
        let first = claims.get(steps.next()?)?;
        steps.try_fold(first, |value, step| value.get(step))
    });
    let name = |value: &Value| value.as_str().map(str::to_owned);
    match found {
        Some(Value::Array(names)) => names.iter().filter_map(name).collect(),
        Some(one) => name(one).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn groups_are_found_where_providers_put_them() {
        let claims = json!({
            "groups": ["a", 1, "b"],
            "role": "one",
            "realm_access": { "roles": ["c"] },
            "https://x.test/groups": ["d"],
            "odd": { "a": 1 },
        });
        let Value::Object(claims) = claims else {
            unreachable!()
        };
        for (claim, expected) in [
            ("groups", vec!["a", "b"]),
            ("role", vec!["one"]),
            ("realm_access.roles", vec!["c"]),
            ("https://x.test/groups", vec!["d"]),
            ("odd", vec![]),
            ("odd.a.b", vec![]),
            ("none", vec![]),
        ] {
            assert_eq!(groups(&claims, claim), expected, "{claim}");
        }
    }
}
