//! Expressions of each kind.

use super::{KINDS, Kind, Maker, Variable};

impl Maker {
    pub(super) fn expression(&mut self, depth: usize) -> String {
        let kind = *self.choices.of(&KINDS);
        self.of(kind, depth)
    }

    fn known(&mut self, kind: Kind) -> Option<String> {
        let fitting: Vec<_> = self
            .variables
            .iter()
            .filter(|known| known.kind == kind)
            .map(|known| known.name.clone())
            .collect();
        match fitting.is_empty() {
            true => None,
            false => Some(self.choices.of(&fitting).clone()),
        }
    }

    pub(super) fn of(&mut self, kind: Kind, depth: usize) -> String {
        if self.choices.below(3) > 0
            && let Some(name) = self.known(kind)
        {
            return name;
        }
        if depth == 0 {
            return self.literal(kind);
        }
        let inner = depth - 1;
        match kind {
            Kind::Int => self.int(inner),
            Kind::Float => self.float(inner),
            Kind::Bool => self.bool(inner),
            Kind::Text => self.text(inner),
            Kind::Array => self.array(inner),
            Kind::Map => self.map(inner),
        }
    }

    fn literal(&mut self, kind: Kind) -> String {
        let literals: &[&str] = match kind {
            Kind::Int => &[
                "0",
                "1",
                "-2",
                "3",
                "7",
                "42",
                "0xff",
                "1_000",
                "9223372036854775807",
            ],
            Kind::Float => &["0.0", "1.5", "-2.25", "1e3", "0.1"],
            Kind::Bool => &["true", "false"],
            Kind::Text => &[
                "\"\"",
                "\"a\"",
                "\"b c\"",
                "\"h\u{e9}llo\"",
                "`x`",
                "\"q\\n\"",
            ],
            Kind::Array => &["[]", "[1, 2, 3]", "[\"a\", 'b', ()]", "[[1], [2, 3]]"],
            Kind::Map => &[
                "#{}",
                "#{ a: 1 }",
                "#{ a: 1, b: [2], n: 3 }",
                "#{ \"x y\": () }",
            ],
        };
        (*self.choices.of(literals)).to_owned()
    }

    /// A call of a function of the script.
    fn call(&mut self, inner: usize) -> Option<String> {
        if self.functions.is_empty() {
            return None;
        }
        let (name, count) = self.choices.of(&self.functions.clone()).clone();
        let arguments: Vec<_> = (0..count).map(|_| self.of(Kind::Int, inner)).collect();
        // As a method, `this` is what stands before the dot.
        match self.choices.one_in(8) {
            true => Some(format!(
                "({}).{name}({})",
                self.of(Kind::Int, inner),
                arguments.join(", ")
            )),
            false => Some(format!("{name}({})", arguments.join(", "))),
        }
    }

    /// A function as a value that takes `count` numbers.
    fn function_value(&mut self, count: usize, inner: usize) -> String {
        let fitting: Vec<_> = self
            .functions
            .iter()
            .filter(|(_, takes)| *takes == count)
            .map(|(name, _)| name.clone())
            .collect();
        if !fitting.is_empty() && self.choices.below(3) > 0 {
            let name = self.choices.of(&fitting).clone();
            return match self.choices.one_in(4) {
                true => format!("Fn(\"{name}\")"),
                false => name,
            };
        }
        let parameters: Vec<_> = (0..count).map(|n| format!("x{n}")).collect();
        let known = self.variables.len();
        for parameter in &parameters {
            self.variables.push(Variable {
                name: parameter.clone(),
                kind: Kind::Int,
                is_constant: false,
            });
        }
        let loops = std::mem::take(&mut self.loops);
        let in_closure = std::mem::replace(&mut self.in_closure, true);
        let body = match self.choices.one_in(4) {
            true => format!("{{ {} {} }}", self.statement(1), self.of(Kind::Int, inner)),
            false => self.of(Kind::Int, inner),
        };
        self.in_closure = in_closure;
        self.loops = loops;
        self.variables.truncate(known);
        match count {
            0 => format!("|| {body}"),
            _ => format!("|{}| {body}", parameters.join(", ")),
        }
    }

    fn int(&mut self, inner: usize) -> String {
        match self.choices.below(16) {
            0..=3 => {
                let op = *self
                    .choices
                    .of(&["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>", "**"]);
                format!(
                    "({} {op} {})",
                    self.of(Kind::Int, inner),
                    self.of(Kind::Int, inner)
                )
            }
            4 => format!("{}.len()", self.of(Kind::Text, inner)),
            5 => format!("{}.len()", self.of(Kind::Array, inner)),
            6 => format!("({}).abs()", self.of(Kind::Int, inner)),
            7 => format!("({}).to_int()", self.of(Kind::Float, inner)),
            8 => format!(
                "(if {} {{ {} }} else {{ {} }})",
                self.of(Kind::Bool, inner),
                self.of(Kind::Int, inner),
                self.of(Kind::Int, inner)
            ),
            9 | 10 => self.call(inner).unwrap_or_else(|| self.literal(Kind::Int)),
            11 => format!(
                "({}?.n ?? {})",
                self.of(Kind::Map, inner),
                self.of(Kind::Int, inner)
            ),
            12 => {
                let known = self.variables.len();
                let block = format!("{{ {} {} }}", self.statement(1), self.of(Kind::Int, inner));
                self.variables.truncate(known);
                block
            }
            13 if self.with_closures => {
                let function = self.function_value(1, inner);
                match self.choices.below(4) {
                    0 => format!("({function}).call({})", self.of(Kind::Int, inner)),
                    1 => format!("({function}).curry({}).call()", self.of(Kind::Int, inner)),
                    _ => format!("{}.map({function}).len()", self.of(Kind::Array, inner)),
                }
            }
            14 if self.with_closures => format!(
                "{}.reduce({}, 0)",
                "[1, 2, 3]",
                self.function_value(2, inner)
            ),
            _ => self.literal(Kind::Int),
        }
    }

    fn float(&mut self, inner: usize) -> String {
        match self.choices.below(6) {
            0 | 1 => {
                let op = *self.choices.of(&["+", "-", "*", "/"]);
                let kinds = [Kind::Float, Kind::Int];
                let other = *self.choices.of(&kinds);
                format!(
                    "({} {op} {})",
                    self.of(Kind::Float, inner),
                    self.of(other, inner)
                )
            }
            2 => format!("({}).to_float()", self.of(Kind::Int, inner)),
            3 => format!("({}).sqrt()", self.of(Kind::Float, inner)),
            4 => format!("({}).round()", self.of(Kind::Float, inner)),
            _ => self.literal(Kind::Float),
        }
    }

    fn bool(&mut self, inner: usize) -> String {
        match self.choices.below(10) {
            0..=2 => {
                let op = *self.choices.of(&["==", "!=", "<", "<=", ">", ">="]);
                let kind = *self
                    .choices
                    .of(&[Kind::Int, Kind::Int, Kind::Text, Kind::Float]);
                format!("({} {op} {})", self.of(kind, inner), self.of(kind, inner))
            }
            3 | 4 => {
                let op = *self.choices.of(&["&&", "||", "&", "|", "^"]);
                format!(
                    "({} {op} {})",
                    self.of(Kind::Bool, inner),
                    self.of(Kind::Bool, inner)
                )
            }
            5 => format!("!{}", self.of(Kind::Bool, inner)),
            6 => format!(
                "({} in {})",
                self.of(Kind::Int, inner),
                self.of(Kind::Array, inner)
            ),
            7 => format!(
                "({} in {})",
                self.of(Kind::Text, inner),
                self.of(Kind::Map, inner)
            ),
            8 => format!(
                "{}.contains({})",
                self.of(Kind::Text, inner),
                self.of(Kind::Text, inner)
            ),
            _ => self.literal(Kind::Bool),
        }
    }

    fn text(&mut self, inner: usize) -> String {
        match self.choices.below(9) {
            0 | 1 => format!(
                "({} + {})",
                self.of(Kind::Text, inner),
                self.expression(inner)
            ),
            2 => format!("`<${{{}}}>`", self.expression(inner)),
            3 => format!("{}.to_upper()", self.of(Kind::Text, inner)),
            4 => format!(
                "{}.sub_string({}, 2)",
                self.of(Kind::Text, inner),
                self.choices.below(3)
            ),
            5 => format!("type_of({})", self.expression(inner)),
            6 => format!("({}).to_string()", self.expression(inner)),
            7 => format!(
                "({})[0..{}]",
                self.of(Kind::Text, inner),
                self.choices.below(4)
            ),
            _ => self.literal(Kind::Text),
        }
    }

    fn array(&mut self, inner: usize) -> String {
        match self.choices.below(14) {
            0..=2 => {
                let count = self.choices.below(4);
                let items: Vec<_> = (0..count).map(|_| self.expression(inner)).collect();
                format!("[{}]", items.join(", "))
            }
            3 => format!(
                "({} + {})",
                self.of(Kind::Array, inner),
                self.of(Kind::Array, inner)
            ),
            4 => format!("{}.split(\" \")", self.of(Kind::Text, inner)),
            5 => format!("{}.keys()", self.of(Kind::Map, inner)),
            6 => format!("{}.values()", self.of(Kind::Map, inner)),
            7 => format!(
                "{}.extract({})",
                self.of(Kind::Array, inner),
                self.choices.below(3)
            ),
            8 | 9 if self.with_closures => {
                format!("[1, 2, 3].map({})", self.function_value(1, inner))
            }
            10 if self.with_closures => {
                let known = self.variables.len();
                self.variables.push(Variable {
                    name: "it".into(),
                    kind: Kind::Int,
                    is_constant: false,
                });
                let condition = self.of(Kind::Bool, inner);
                self.variables.truncate(known);
                format!("[3, 1, 2].filter(|it| {condition})")
            }
            11 if self.with_closures => {
                let sorted = self.name("s");
                let function = self.function_value(2, inner);
                format!("{{ let {sorted} = [3, 1, 2]; {sorted}.sort({function}); {sorted} }}")
            }
            _ => self.literal(Kind::Array),
        }
    }

    fn map(&mut self, inner: usize) -> String {
        match self.choices.below(6) {
            0..=2 => {
                let members: Vec<_> = ["a", "n", "\"k k\""]
                    .iter()
                    .take(1 + self.choices.below(3))
                    .map(|name| format!("{name}: {}", self.expression(inner)))
                    .collect();
                format!("#{{ {} }}", members.join(", "))
            }
            3 => format!(
                "({} + {})",
                self.of(Kind::Map, inner),
                self.of(Kind::Map, inner)
            ),
            4 if self.with_closures => {
                let function = self.function_value(1, inner);
                format!("#{{ n: 2, f: {function} }}")
            }
            _ => self.literal(Kind::Map),
        }
    }
}
