//! `array.unique()`, by the language's own `==`.
//!
//! Comparing each item with each other takes the square of their number. So each is hashed first,
//! such that equal ones have one hash, and `==` compares those of one hash only.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use rhai::{Array, Dynamic, EvalAltResult, OP_EQUALS};

use super::values::Number;
use super::{Context, Native};
use crate::error::SdkError;

/// How deep a value is looked into for its class. What differs deeper only is left to `==`.
const DEPTH_MAX: usize = 8;

/// How many adjacent floats have one hash: their cell. Whole numbers and binary fractions are in the
/// middle of theirs, and few floats are at an edge.
const CELL: u64 = 1 << 16;
/// How many steps from one float to the next may lie between two that are equal: `==` tolerates
/// [`f64::EPSILON`] of the larger, which is at most two steps, or four below a power of two.
const NEAR: u64 = 4;

/// What a value may be equal to.
enum Class {
    /// Values of this class, and those of [`Class::Any`].
    Of(u64),
    /// Any value.
    Any,
    /// Nothing.
    Nothing,
}

/// Why a value is in no class of its own.
enum Odd {
    /// It has a float at the edge of a cell, which equals some in the next.
    Edge,
    /// It has a NaN. Rhai has that equal 0, and 0 only, which nobody who counts zeros expects: its
    /// tolerance is relative to the larger of two, and Rust takes 0 for the larger.
    NaN,
}

/// What tells the classes of an array's items.
#[derive(Default)]
struct Classes {
    /// The cells of the floats among them. Only a float equals other numbers than its own, so that
    /// those near none are told apart by all of their digits: identifiers, say.
    floats: BTreeSet<u64>,
}

impl Classes {
    fn of_items(array: &Array) -> Self {
        let mut classes = Self::default();
        for item in array {
            classes.collect(item, 0);
        }
        classes
    }

    fn collect(&mut self, value: &Dynamic, depth: usize) {
        if value.is_shared() {
            self.collect(&value.flatten_clone(), depth);
        } else if let Ok(number) = value.as_float() {
            if !number.is_nan() {
                self.floats.extend(cells(number));
            }
        } else if depth >= DEPTH_MAX {
            // Not looked into.
        } else if let Ok(array) = value.as_array_ref() {
            for item in array.iter() {
                self.collect(item, depth + 1);
            }
        } else if let Ok(map) = value.as_map_ref() {
            for member in map.values() {
                self.collect(member, depth + 1);
            }
        }
    }

    fn class(&self, value: &Dynamic) -> Class {
        let mut hasher = DefaultHasher::new();
        match self.hash(value, 0, &mut hasher) {
            Ok(()) => Class::Of(hasher.finish()),
            Err(Odd::Edge) => Class::Any,
            Err(Odd::NaN) => Class::Nothing,
        }
    }

    fn hash(&self, value: &Dynamic, depth: usize, hasher: &mut DefaultHasher) -> Result<(), Odd> {
        if value.is_shared() {
            return self.hash(&value.flatten_clone(), depth, hasher);
        }
        if let Some(number) = Number::of(value) {
            "number".hash(hasher);
            self.hash_number(number, hasher)?;
        } else if let Ok(text) = value.as_immutable_string_ref() {
            text.as_str().hash(hasher);
        } else if let Ok(char) = value.as_char() {
            // It equals a string of this one, and an error its message.
            char.encode_utf8(&mut [0; 4]).hash(hasher);
        } else if let Some(error) = value.read_lock::<SdkError>() {
            error.message.as_str().hash(hasher);
        } else if let Ok(array) = value.as_array_ref() {
            ("array", array.len()).hash(hasher);
            for item in array.iter().take_while(|_| depth < DEPTH_MAX) {
                self.hash(item, depth + 1, hasher)?;
            }
        } else if let Ok(map) = value.as_map_ref() {
            ("map", map.len()).hash(hasher);
            for (name, member) in map.iter().take_while(|_| depth < DEPTH_MAX) {
                name.hash(hasher);
                self.hash(member, depth + 1, hasher)?;
            }
        } else if let Ok(blob) = value.as_blob_ref() {
            ("blob", &*blob).hash(hasher);
        } else {
            (value.type_name(), value.as_bool().ok()).hash(hasher);
        }
        Ok(())
    }

    fn hash_number(&self, number: Number, hasher: &mut DefaultHasher) -> Result<(), Odd> {
        let is_float = match number {
            Number::Float(number) if number.is_nan() => return Err(Odd::NaN),
            Number::Float(_) => true,
            Number::Int(_) | Number::Decimal(_) => false,
        };
        let [from, to] = cells(number.float());
        if is_float || self.floats.contains(&from) || self.floats.contains(&to) {
            if from != to {
                return Err(Odd::Edge);
            }
            from.hash(hasher);
        } else {
            // Equal decimals have one hash, however many zeros they end in.
            number.decimal().hash(hasher);
        }
        Ok(())
    }
}

/// The cells that a number and those near it are in: one, or two at the edge.
fn cells(number: f64) -> [u64; 2] {
    // Zero equals whatever is nearer to it than this, whatever its sign.
    let from_zero = number.abs() / f64::EPSILON;
    if from_zero <= 1.5 {
        return [0, 0];
    }
    // Floats that follow each other have bits that do.
    let bits = number.to_bits() + CELL / 2;
    let first = if from_zero <= 2.0 {
        0
    } else {
        (bits - NEAR) / CELL
    };
    [first, (bits + NEAR) / CELL]
}

/// What `a == b` is; false where the language knows no `==` of the two.
fn equal(context: &Context<'_>, a: &Dynamic, b: &Dynamic) -> Native<bool> {
    // Rhai consumes what it is given.
    let (mut a, mut b) = (a.flatten_clone(), b.flatten_clone());
    match context.call_native_fn_raw(OP_EQUALS, true, &mut [&mut a, &mut b]) {
        Ok(equal) => Ok(equal.as_bool().unwrap_or(false)),
        Err(error) => match *error {
            EvalAltResult::ErrorFunctionNotFound(call, _) if call.starts_with(OP_EQUALS) => {
                Ok(false)
            }
            _ => Err(error),
        },
    }
}

fn equals_one<'a>(
    context: &Context<'_>,
    value: &Dynamic,
    others: impl Iterator<Item = &'a Dynamic>,
) -> Native<bool> {
    for other in others {
        if equal(context, other, value)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The items that equal none of those kept before them.
pub(super) fn unique(context: &Context<'_>, array: Array) -> Native<Array> {
    let classes = Classes::of_items(&array);
    let mut kept = Array::new();
    // Where in `kept` the items of a class are.
    let mut of_class = BTreeMap::<u64, Vec<usize>>::new();
    let mut of_any = Vec::new();
    for item in array {
        let class = classes.class(&item);
        let near: Vec<usize> = match class {
            Class::Of(class) => {
                let same = of_class.get(&class).into_iter().flatten();
                same.chain(&of_any).copied().collect()
            }
            Class::Any => (0..kept.len()).collect(),
            Class::Nothing => Vec::new(),
        };
        if equals_one(context, &item, near.iter().map(|at| &kept[*at]))? {
            continue;
        }
        match class {
            Class::Of(class) => of_class.entry(class).or_default().push(kept.len()),
            Class::Any => of_any.push(kept.len()),
            Class::Nothing => {}
        }
        kept.push(item);
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::CELL;
    use crate::{engine, script};

    fn shown(source: &str) -> String {
        let tree = engine::parse(source).unwrap();
        format!("{:?}", engine::evaluate(&script::of_tree(tree)).unwrap())
    }

    const OTHERS: &str = r#"
        0; 1; -1; 0.0; -0.0; 1e-17; 1e-200; 0.1 + 0.2; 1.0 / 0.0;
        9007199254740992; 9007199254740993; 9007199254740992.0; 9223372036854775807;
        parse_decimal("1"); parse_decimal("1.00"); parse_decimal("-0"); parse_decimal("0.30");
        parse_decimal("0.3"); parse_decimal("9223372036854775807.0");
        'a'; "a"; "1"; (); true; false; blob(1, 1); blob(1, 2); 0..1; 0..=1; Fn("f"); []; #{}"#;

    /// What lies close to a power of two, to the edge of a cell, and to where zero ends.
    fn floats() -> Vec<String> {
        let edge = (1.1_f64.to_bits() / CELL * CELL) + CELL / 2;
        let numbers = [1.0, f64::from_bits(edge), 1e300, f64::EPSILON];
        let numbers = numbers
            .into_iter()
            .chain([1.5, 2.0].map(|by| f64::EPSILON * by));
        let near = |number: f64| {
            let steps = -5_i64..=5;
            steps.map(move |by| f64::from_bits(number.to_bits().saturating_add_signed(by)))
        };
        numbers
            .flat_map(near)
            .map(|number| format!("{number:?}"))
            .collect()
    }

    /// Literals of few values that are equal, nearly equal or alike.
    fn value() -> impl Strategy<Value = String> {
        let floats = prop::sample::select(floats());
        let others: Vec<_> = OTHERS.split_terminator(';').map(str::trim).collect();
        let leaf = prop_oneof![floats, prop::sample::select(others).prop_map(str::to_owned)];
        leaf.prop_recursive(2, 8, 2, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3)
                    .prop_map(|items| format!("[{}]", items.join(", "))),
                inner.prop_map(|member| format!("#{{ a: {member} }}")),
            ]
        })
    }

    const ONE_BY_ONE: &str = "
        fn one_by_one(array) {
            let kept = [];
            for item in array {
                let known = false;
                for earlier in kept {
                    // The language knows no `==` of some.
                    try { known = known || earlier == item; } catch {}
                }
                if !known { kept.push(item); }
            }
            kept
        }";

    #[test]
    fn what_is_left_of_two_close_floats_is_one_where_they_are_equal() {
        let floats = floats().join(", ");
        let source = format!(
            "let floats = [{floats}, 0.0, 0, 1, 1e-200];
             for a in floats {{ for b in floats {{
                 if ([a, b].unique().len() == 1) != (a == b) {{ return [a, b]; }}
             }} }}"
        );
        assert_eq!(shown(&source), "()");
    }

    proptest! {
        #[test]
        fn what_is_left_equals_no_earlier_item(items in prop::collection::vec(value(), 0..12)) {
            let items = items.join(", ");
            let unique = shown(&format!("[{items}].unique()"));
            let expected = shown(&format!("one_by_one([{items}]); {ONE_BY_ONE}"));
            prop_assert_eq!(unique, expected);
        }
    }
}
