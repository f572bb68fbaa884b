//! `random::{int, float, bytes, text, uuid, pick}`: randomness of the host, fit for secrets.

use rhai::{Array, Blob, Dynamic, Module};

use super::{Context, Native, fail, uuid};

/// The most bytes of one call.
const BYTES_MAX: i64 = 65_536;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

pub(super) fn fill(context: &Context<'_>, call: &'static str, bytes: &mut [u8]) -> Native<()> {
    getrandom::fill(bytes).or_else(|problem| fail(context, call, problem))
}

fn number(context: &Context<'_>, call: &'static str) -> Native<u64> {
    let mut bytes = [0; 8];
    fill(context, call, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// A number below `end`, each as likely (Lemire's method).
fn below(context: &Context<'_>, call: &'static str, end: u64) -> Native<u64> {
    loop {
        let product = u128::from(number(context, call)?) * u128::from(end);
        if product as u64 >= end.wrapping_neg() % end {
            return Ok((product >> 64) as u64);
        }
    }
}

fn length(context: &Context<'_>, call: &'static str, count: i64) -> Native<usize> {
    match usize::try_from(count) {
        Ok(length) if count <= BYTES_MAX => Ok(length),
        _ => fail(
            context,
            call,
            format!("the length is 0 to {BYTES_MAX}, not {count}"),
        ),
    }
}

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn(
        "int",
        |context: Context<'_>, from: i64, to: i64| -> Native<i64> {
            const CALL: &str = "random::int";
            if from > to {
                return fail(&context, CALL, format!("{from} is more than {to}"));
            }
            match (to.wrapping_sub(from) as u64).checked_add(1) {
                Some(end) => Ok(from.wrapping_add(below(&context, CALL, end)? as i64)),
                None => Ok(number(&context, CALL)? as i64),
            }
        },
    );
    module.set_native_fn("float", |context: Context<'_>| -> Native<f64> {
        // 53 bits: as many as a float between 0 and 1 has.
        Ok((number(&context, "random::float")? >> 11) as f64 / (1_u64 << 53) as f64)
    });
    module.set_native_fn(
        "bytes",
        |context: Context<'_>, count: i64| -> Native<Blob> {
            let mut bytes = vec![0; length(&context, "random::bytes", count)?];
            fill(&context, "random::bytes", &mut bytes)?;
            Ok(bytes)
        },
    );
    module.set_native_fn(
        "text",
        |context: Context<'_>, count: i64| -> Native<String> {
            let mut bytes = vec![0; length(&context, "random::text", count)?];
            fill(&context, "random::text", &mut bytes)?;
            Ok(bytes
                .into_iter()
                .map(|byte| char::from(ALPHABET[usize::from(byte % 64)]))
                .collect())
        },
    );
    module.set_native_fn("uuid", |context: Context<'_>| {
        uuid::v4(&context, "random::uuid")
    });
    module.set_native_fn(
        "pick",
        |context: Context<'_>, items: Array| -> Native<Dynamic> {
            const CALL: &str = "random::pick";
            if items.is_empty() {
                return fail(&context, CALL, "the array is empty");
            }
            let at = below(&context, CALL, items.len() as u64)? as usize;
            Ok(items.into_iter().nth(at).unwrap_or(Dynamic::UNIT))
        },
    );
    module
}
