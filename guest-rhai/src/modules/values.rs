//! What arrays, maps, strings and numbers can besides what Rhai's own packages have them do. None of
//! it changes what it is called on, but `sort_by_key`, and `append`, which is Rhai's made faster.

use std::cmp::Ordering;

use rhai::{Array, Dynamic, Engine, FnPtr, ImmutableString, Map};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

use super::unique::unique;
use super::{Context, Native, fail, refused};
use crate::host::{Problem, kind};
use crate::json;

/// The longest string that one call makes of a shorter one. Beyond it, no memory would do.
const TEXT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// The most digits after the point.
const DIGITS_MAX: i64 = 28;

/// A value as a part of a text: nothing for `()`.
fn text_of(value: &Dynamic) -> String {
    match value.is_unit() {
        true => String::new(),
        false => json::display(value),
    }
}

fn join(array: &Array, between: &str) -> String {
    let parts: Vec<_> = array.iter().map(text_of).collect();
    parts.join(between)
}

/// A number of any kind.
#[derive(Clone, Copy)]
pub(super) enum Number {
    Int(i64),
    Float(f64),
    Decimal(Decimal),
}

impl Number {
    pub(super) fn of(value: &Dynamic) -> Option<Self> {
        let int = value.as_int().ok().map(Self::Int);
        let float = || value.as_float().ok().map(Self::Float);
        let decimal = || value.as_decimal().ok().map(Self::Decimal);
        int.or_else(float).or_else(decimal)
    }

    pub(super) fn decimal(self) -> Option<Decimal> {
        match self {
            Self::Int(number) => Some(number.into()),
            Self::Decimal(number) => Some(number),
            Self::Float(_) => None,
        }
    }

    pub(super) fn float(self) -> f64 {
        match self {
            Self::Int(number) => number as f64,
            Self::Float(number) => number,
            Self::Decimal(number) => number.to_f64().unwrap_or(f64::NAN),
        }
    }

    /// The sum, as exact as the more exact of both; none when it is too large.
    fn plus(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => a.checked_add(b).map(Self::Int),
            (Self::Float(_), _) | (_, Self::Float(_)) => {
                Some(Self::Float(self.float() + other.float()))
            }
            _ => {
                let sum = self.decimal()?.checked_add(other.decimal()?)?;
                Some(Self::Decimal(sum))
            }
        }
    }
}

impl From<Number> for Dynamic {
    fn from(number: Number) -> Self {
        match number {
            Number::Int(number) => number.into(),
            Number::Float(number) => number.into(),
            Number::Decimal(number) => number.into(),
        }
    }
}

fn sum(context: &Context<'_>, array: &Array) -> Native<Dynamic> {
    const CALL: &str = "sum";
    let mut sum = Number::Int(0);
    for (at, item) in array.iter().enumerate() {
        let Some(number) = Number::of(item) else {
            let problem = format!("item {at} is no number but {}", item.type_name());
            return fail(context, CALL, problem);
        };
        match sum.plus(number) {
            Some(more) => sum = more,
            None => return fail(context, CALL, "the sum is too large"),
        }
    }
    Ok(sum.into())
}

fn flatten(array: Array, depth: i64, flat: &mut Array) {
    for item in array {
        match item.flatten().try_cast_result::<Array>() {
            Ok(inner) if depth > 0 => flatten(inner, depth - 1, flat),
            Ok(inner) => flat.push(inner.into()),
            Err(item) => flat.push(item),
        }
    }
}

fn flattened(array: Array, depth: i64) -> Array {
    let mut flat = Array::with_capacity(array.len());
    flatten(array, depth, &mut flat);
    flat
}

fn group_by(context: &Context<'_>, array: Array, key: &FnPtr) -> Native<Map> {
    let mut groups = Map::new();
    for item in array {
        let name = key.call_within_context::<Dynamic>(context, (item.clone(),))?;
        let group = groups
            .entry(text_of(&name).into())
            .or_insert_with(|| Array::new().into());
        if let Some(mut group) = group.write_lock::<Array>() {
            group.push(item);
        }
    }
    Ok(groups)
}

/// Which of two keys comes first; none where they cannot be compared.
fn order(a: &Dynamic, b: &Dynamic) -> Option<Ordering> {
    if let (Ok(a), Ok(b)) = (a.as_int(), b.as_int()) {
        return Some(a.cmp(&b));
    }
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return match (a.decimal(), b.decimal()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => a.float().partial_cmp(&b.float()),
        };
    }
    if let (Ok(a), Ok(b)) = (a.as_immutable_string_ref(), b.as_immutable_string_ref()) {
        return Some(a.as_str().cmp(b.as_str()));
    }
    if let (Ok(a), Ok(b)) = (a.as_char(), b.as_char()) {
        return Some(a.cmp(&b));
    }
    let (a, b) = (a.as_bool().ok()?, b.as_bool().ok()?);
    Some(a.cmp(&b))
}

fn sorted_by_key(
    context: &Context<'_>,
    call: &'static str,
    array: Array,
    key: &FnPtr,
) -> Native<Array> {
    let mut keyed = Vec::with_capacity(array.len());
    for item in array {
        let key = key.call_within_context::<Dynamic>(context, (item.clone(),))?;
        keyed.push((key.flatten(), item));
    }
    let mut odd = None;
    keyed.sort_by(|(a, _), (b, _)| {
        order(a, b).unwrap_or_else(|| {
            odd.get_or_insert((a.type_name(), b.type_name()));
            Ordering::Equal
        })
    });
    if let Some((a, b)) = odd {
        return fail(context, call, format!("{a} and {b} have no order"));
    }
    Ok(keyed.into_iter().map(|(_, item)| item).collect())
}

fn entries(map: &Map) -> Array {
    let entry = |(key, value): (&rhai::Identifier, &Dynamic)| {
        let key = Dynamic::from(ImmutableString::from(key.as_str()));
        Map::from([("key".into(), key), ("value".into(), value.clone())]).into()
    };
    map.iter().map(entry).collect()
}

fn too_large<T>(context: &Context<'_>, call: &'static str) -> Native<T> {
    let problem = format!("the text would have more than {TEXT_BYTES_MAX} bytes");
    refused(context, call, Problem::new(kind::TOO_LARGE, problem))
}

fn repeat(context: &Context<'_>, text: &str, times: i64) -> Native<String> {
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    match text.len().checked_mul(times) {
        Some(bytes) if bytes <= TEXT_BYTES_MAX => Ok(text.repeat(times)),
        _ => too_large(context, "repeat"),
    }
}

fn pad_left(context: &Context<'_>, text: &str, length: i64, with: &str) -> Native<String> {
    let length = usize::try_from(length.max(0)).unwrap_or(usize::MAX);
    let missing = length.saturating_sub(text.chars().count());
    if missing == 0 || with.is_empty() {
        return Ok(text.to_owned());
    }
    if missing > TEXT_BYTES_MAX / 4 {
        return too_large(context, "pad_left");
    }
    let mut padded: String = with.chars().cycle().take(missing).collect();
    padded.push_str(text);
    Ok(padded)
}

fn round(context: &Context<'_>, number: f64, digits: i64) -> Native<f64> {
    let digits = digits_of(context, "round", digits)?;
    // By the digits that the number is written with: 1.005 is a bit less than it looks.
    let text = number.to_string();
    match text.parse::<Decimal>() {
        Ok(exact) => {
            let strategy = rust_decimal::RoundingStrategy::MidpointAwayFromZero;
            let rounded = exact.round_dp_with_strategy(digits, strategy);
            Ok(rounded.to_f64().unwrap_or(number))
        }
        // Too large to have digits after the point, or none at all.
        Err(_) => Ok(number),
    }
}

fn digits_of(context: &Context<'_>, call: &'static str, digits: i64) -> Native<u32> {
    match u32::try_from(digits) {
        Ok(digits) if i64::from(digits) <= DIGITS_MAX => Ok(digits),
        _ => fail(
            context,
            call,
            format!("the digits are 0 to {DIGITS_MAX}, not {digits}"),
        ),
    }
}

/// A number for people: thousands apart, and so many digits after the point.
fn format_number(
    context: &Context<'_>,
    number: &Dynamic,
    digits: Option<i64>,
    thousands: &str,
    point: &str,
) -> Native<String> {
    const CALL: &str = "num::format";
    let digits = digits
        .map(|digits| digits_of(context, CALL, digits))
        .transpose()?;
    let text = match (Number::of(number), digits) {
        (None, _) => {
            let problem = format!("the value is no number but {}", number.type_name());
            return fail(context, CALL, problem);
        }
        (Some(Number::Float(number)), Some(digits)) => {
            let rounded = round(context, number, digits.into())?;
            format!("{rounded:.*}", digits as usize)
        }
        (Some(Number::Float(number)), None) => number.to_string(),
        (Some(Number::Decimal(number)), Some(digits)) => {
            let strategy = rust_decimal::RoundingStrategy::MidpointAwayFromZero;
            let rounded = number.round_dp_with_strategy(digits, strategy);
            format!("{rounded:.*}", digits as usize)
        }
        (Some(Number::Decimal(number)), None) => number.to_string(),
        (Some(Number::Int(number)), None) => number.to_string(),
        (Some(Number::Int(number)), Some(digits)) => {
            format!("{:.*}", digits as usize, Decimal::from(number))
        }
    };
    let (sign, text) = match text.strip_prefix('-') {
        Some(text) => ("-", text),
        None => ("", text.as_str()),
    };
    let (whole, fraction) = text
        .split_once('.')
        .map_or((text, None), |(whole, fraction)| (whole, Some(fraction)));
    // Infinite, or not a number.
    if !whole.bytes().all(|digit| digit.is_ascii_digit()) {
        return Ok(format!("{sign}{text}"));
    }
    let mut out = sign.to_owned();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            out.push_str(thousands);
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push_str(point);
        out.push_str(fraction);
    }
    Ok(out)
}

/// `num::format`.
pub(super) fn module() -> rhai::Module {
    let mut module = rhai::Module::new();
    module.set_native_fn("format", |context: Context<'_>, number: Dynamic| {
        format_number(&context, &number, None, ",", ".")
    });
    module.set_native_fn(
        "format",
        |context: Context<'_>, number: Dynamic, digits: i64| {
            format_number(&context, &number, Some(digits), ",", ".")
        },
    );
    module.set_native_fn(
        "format",
        |context: Context<'_>,
         number: Dynamic,
         digits: i64,
         thousands: ImmutableString,
         point: ImmutableString| {
            format_number(&context, &number, Some(digits), &thousands, &point)
        },
    );
    module
}

/// The methods.
pub(super) fn register(engine: &mut Engine) {
    engine
        // Rhai's own copies the whole text each time, which `+=` does not.
        .register_fn(
            "append",
            |text: &mut ImmutableString, more: ImmutableString| *text += more,
        )
        .register_fn("join", |array: &mut Array| join(array, ""))
        .register_fn("join", |array: &mut Array, between: &str| {
            join(array, between)
        })
        .register_fn("sum", |context: Context<'_>, array: &mut Array| {
            sum(&context, array)
        })
        .register_fn("first", |array: &mut Array| {
            array.first().cloned().unwrap_or_default()
        })
        .register_fn("last", |array: &mut Array| {
            array.last().cloned().unwrap_or_default()
        })
        .register_fn("flatten", |array: Array| flattened(array, 1))
        .register_fn("flatten", flattened)
        .register_fn("unique", |context: Context<'_>, array: Array| {
            unique(&context, array)
        })
        .register_fn(
            "group_by",
            |context: Context<'_>, array: Array, key: FnPtr| group_by(&context, array, &key),
        )
        .register_fn(
            "order_by_key",
            |context: Context<'_>, array: Array, key: FnPtr| {
                sorted_by_key(&context, "order_by_key", array, &key)
            },
        )
        .register_fn(
            "sort_by_key",
            |context: Context<'_>, array: &mut Array, key: FnPtr| -> Native<()> {
                *array = sorted_by_key(&context, "sort_by_key", array.clone(), &key)?;
                Ok(())
            },
        )
        .register_fn("entries", |map: &mut Map| entries(map))
        .register_fn("repeat", |context: Context<'_>, text: &str, times: i64| {
            repeat(&context, text, times)
        })
        .register_fn(
            "pad_left",
            |context: Context<'_>, text: &str, length: i64| pad_left(&context, text, length, " "),
        )
        .register_fn(
            "pad_left",
            |context: Context<'_>, text: &str, length: i64, with: &str| {
                pad_left(&context, text, length, with)
            },
        )
        .register_fn(
            "pad_left",
            |context: Context<'_>, text: &str, length: i64, with: char| {
                pad_left(&context, text, length, with.encode_utf8(&mut [0; 4]))
            },
        )
        .register_fn("replaced", |text: &str, part: &str, with: &str| {
            text.replace(part, with)
        })
        .register_fn("round", |context: Context<'_>, number: f64, digits: i64| {
            round(&context, number, digits)
        })
        .register_fn("round", |number: i64, _: i64| number);
}
