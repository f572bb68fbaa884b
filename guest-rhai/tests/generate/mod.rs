//! Makes scripts of all that the language has, most of them valid, each from a number.

/// A source of choices: SplitMix64.
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// What an expression is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Int,
    Float,
    Bool,
    Text,
    Array,
    Map,
}

const KINDS: [Kind; 6] = [
    Kind::Int,
    Kind::Float,
    Kind::Bool,
    Kind::Text,
    Kind::Array,
    Kind::Map,
];

struct Variable {
    name: String,
    kind: Kind,
    is_constant: bool,
}

struct Maker {
    choices: Choices,
    variables: Vec<Variable>,
    /// Name and number of parameters, all of them numbers.
    functions: Vec<(String, usize)>,
    made: usize,
    loops: usize,
    in_function: bool,
    in_closure: bool,
    /// Whether closures and functions by name occur: without them there is bytecode.
    with_closures: bool,
}

/// The script of a number.
pub fn script(seed: u64) -> String {
    let mut choices = Choices(seed);
    let with_closures = choices.one_in(2);
    let mut maker = Maker {
        choices,
        variables: Vec::new(),
        functions: Vec::new(),
        made: 0,
        loops: 0,
        in_function: false,
        in_closure: false,
        with_closures,
    };
    maker.script()
}

impl Maker {
    fn name(&mut self, kind: &str) -> String {
        self.made += 1;
        format!("{kind}{}", self.made)
    }

    fn script(&mut self) -> String {
        let mut out = String::new();
        let functions = self.choices.below(4);
        for _ in 0..functions {
            let name = self.name("f");
            let count = self.choices.below(3);
            self.functions.push((name, count));
        }
        for (name, count) in self.functions.clone() {
            out += &self.function(&name, count);
        }
        let statements = 2 + self.choices.below(6);
        for _ in 0..statements {
            out += &self.statement(3);
            out += "\n";
        }
        let all: Vec<_> = self
            .variables
            .iter()
            .map(|known| known.name.clone())
            .collect();
        match self.choices.below(4) {
            0 => out += &self.expression(3),
            1 => out += &format!("return {};", self.expression(2)),
            _ => out += &format!("[{}]", all.join(", ")),
        }
        out
    }

    fn function(&mut self, name: &str, count: usize) -> String {
        let outside = std::mem::take(&mut self.variables);
        let parameters: Vec<_> = (0..count).map(|n| format!("p{n}")).collect();
        for parameter in &parameters {
            self.variables.push(Variable {
                name: parameter.clone(),
                kind: Kind::Int,
                is_constant: false,
            });
        }
        let was = std::mem::replace(&mut self.in_function, true);
        let before = std::mem::take(&mut self.loops);
        let functions = self.functions.clone();
        // A function calls those before it only, so that all of them end.
        self.functions.retain(|(known, _)| known.as_str() < name);
        let mut body = String::new();
        let statements = self.choices.below(3);
        for _ in 0..statements {
            body += &format!("  {}\n", self.statement(2));
        }
        let kind = if self.choices.one_in(6) {
            *self.choices.of(&KINDS)
        } else {
            Kind::Int
        };
        body += &format!("  {}\n", self.of(kind, 2));
        self.functions = functions;
        self.loops = before;
        self.in_function = was;
        self.variables = outside;
        let private = if self.choices.one_in(6) {
            "private "
        } else {
            ""
        };
        format!(
            "{private}fn {name}({}) {{\n{body}}}\n",
            parameters.join(", ")
        )
    }

    fn block(&mut self, depth: usize) -> String {
        let known = self.variables.len();
        let count = 1 + self.choices.below(3);
        let statements: Vec<_> = (0..count).map(|_| self.statement(depth)).collect();
        self.variables.truncate(known);
        statements.join(" ")
    }

    fn statement(&mut self, depth: usize) -> String {
        if depth == 0 {
            return format!("{};", self.expression(1));
        }
        let inner = depth - 1;
        match self.choices.below(24) {
            0..=6 => {
                let kind = *self.choices.of(&KINDS);
                let value = self.of(kind, inner);
                let is_constant = self.choices.one_in(6);
                let name = match self.variables.is_empty() || self.choices.below(5) > 0 {
                    true => self.name("v"),
                    // Shadowed.
                    false => {
                        let at = self.choices.below(self.variables.len());
                        self.variables[at].name.clone()
                    }
                };
                self.variables.push(Variable {
                    name: name.clone(),
                    kind,
                    is_constant,
                });
                let word = if is_constant { "const" } else { "let" };
                format!("{word} {name} = {value};")
            }
            7..=10 => self.change(inner),
            11 | 12 => {
                let condition = self.of(Kind::Bool, inner);
                let then = self.block(inner);
                match self.choices.one_in(2) {
                    true => format!("if {condition} {{ {then} }}"),
                    false => format!(
                        "if {condition} {{ {then} }} else {{ {} }}",
                        self.block(inner)
                    ),
                }
            }
            13 | 14 => self.for_loop(inner),
            15 => {
                let name = self.name("n");
                self.loops += 1;
                let body = self.block(inner);
                self.loops -= 1;
                let end = 1 + self.choices.below(4);
                match self.choices.below(3) {
                    0 => format!("let {name} = 0; while {name} < {end} {{ {name} += 1; {body} }}"),
                    1 => format!(
                        "let {name} = 0; do {{ {name} += 1; {body} }} while {name} < {end};"
                    ),
                    _ => format!(
                        "let {name} = 0; loop {{ {name} += 1; if {name} > {end} {{ break; }} {body} }}"
                    ),
                }
            }
            16 => {
                let caught = self.name("e");
                let body = self.block(inner);
                let thrown = match self.choices.below(3) {
                    0 => String::new(),
                    1 => format!("throw {};", self.expression(1)),
                    _ => self.failing(),
                };
                let told = *self
                    .choices
                    .of(&["", "print(type_of(CAUGHT));", "print(CAUGHT);"]);
                let told = told.replace("CAUGHT", &caught);
                format!("try {{ {body} {thrown} }} catch ({caught}) {{ {told} }}")
            }
            17 => format!("print({});", self.expression(inner)),
            18 if self.loops > 0 => {
                let condition = self.of(Kind::Bool, 1);
                let word = *self.choices.of(&["break", "continue"]);
                format!("if {condition} {{ {word}; }}")
            }
            19 if self.in_function => {
                format!(
                    "if {} {{ return {}; }}",
                    self.of(Kind::Bool, 1),
                    self.of(Kind::Int, 1)
                )
            }
            20 => {
                let subject = self.of(Kind::Int, inner);
                let (a, b) = (self.choices.below(5), self.choices.below(9));
                let arms = [self.block(inner), self.block(inner), self.block(inner)];
                format!(
                    "switch {subject} {{ {a} | 7 => {{ {} }} {b}..12 => {{ {} }} _ => {{ {} }} }}",
                    arms[0], arms[1], arms[2]
                )
            }
            21 if self.choices.one_in(4) => self.failing(),
            _ => format!("{};", self.expression(inner)),
        }
    }

    fn for_loop(&mut self, inner: usize) -> String {
        let (name, counter) = (self.name("i"), self.name("c"));
        let (over, kind) = match self.choices.below(5) {
            0 => (format!("0..{}", self.choices.below(5)), Kind::Int),
            1 => (format!("1..={}", self.choices.below(4)), Kind::Int),
            2 => (
                format!("range({}, 0, -2)", self.choices.below(8)),
                Kind::Int,
            ),
            3 => (format!("{}.keys()", self.of(Kind::Map, 1)), Kind::Text),
            _ => ("[1, 2, 3]".to_owned(), Kind::Int),
        };
        let known = self.variables.len();
        self.variables.push(Variable {
            name: name.clone(),
            kind,
            is_constant: false,
        });
        self.loops += 1;
        let body = self.block(inner);
        self.loops -= 1;
        self.variables.truncate(known);
        match self.choices.one_in(3) {
            true => format!("for ({name}, {counter}) in {over} {{ {body} }}"),
            false => format!("for {name} in {over} {{ {body} }}"),
        }
    }

    /// A statement that changes a variable.
    fn change(&mut self, inner: usize) -> String {
        let changing: Vec<_> = self
            .variables
            .iter()
            .filter(|known| !known.is_constant)
            .map(|known| (known.name.clone(), known.kind))
            .collect();
        if changing.is_empty() {
            return format!("{};", self.expression(inner));
        }
        let (name, kind) = self.choices.of(&changing).clone();
        // What is done again and again must not double.
        let repeated = self.loops > 0 || self.in_function || self.in_closure;
        let inner = if repeated { 0 } else { inner };
        let known = match repeated {
            true => std::mem::take(&mut self.variables),
            false => Vec::new(),
        };
        let change = self.change_of(&name, kind, inner);
        if repeated {
            self.variables = known;
        }
        change
    }

    fn change_of(&mut self, name: &str, kind: Kind, inner: usize) -> String {
        match kind {
            Kind::Int => {
                let op = *self
                    .choices
                    .of(&["=", "+=", "-=", "*=", "/=", "%=", "|=", "&=", "^="]);
                format!("{name} {op} {};", self.of(Kind::Int, inner))
            }
            Kind::Float => {
                let op = *self.choices.of(&["=", "+=", "-=", "*=", "/="]);
                format!("{name} {op} {};", self.of(Kind::Float, inner))
            }
            Kind::Bool => format!("{name} = {};", self.of(Kind::Bool, inner)),
            Kind::Text => match self.choices.below(5) {
                0 => format!("{name}.replace(\"a\", \"bc\");"),
                1 => format!("{name}.trim();"),
                2 => format!("{name}.pad({}, '-');", self.choices.below(8)),
                _ => format!("{name} += {};", self.expression(inner)),
            },
            Kind::Array => match self.choices.below(9) {
                0 => format!("{name}.push({});", self.expression(inner)),
                1 => format!(
                    "{name}.insert({}, {});",
                    self.choices.below(4),
                    self.expression(inner)
                ),
                2 => format!("{name}.pop();"),
                3 => format!("{name} += {};", self.of(Kind::Array, inner)),
                4 => format!(
                    "{name}[{}] = {};",
                    self.choices.below(3),
                    self.expression(inner)
                ),
                5 => format!("{name}.reverse();"),
                6 => format!("{name}.remove({});", self.choices.below(3)),
                7 => format!("{name}[0] += {};", self.of(Kind::Int, inner)),
                _ => format!("{name}.truncate({});", self.choices.below(4)),
            },
            Kind::Map => match self.choices.below(6) {
                0 => format!("{name}.a = {};", self.expression(inner)),
                1 => format!("{name}[\"b\"] = {};", self.expression(inner)),
                2 => format!("{name}.remove(\"a\");"),
                3 => format!("{name} += {};", self.of(Kind::Map, inner)),
                4 => format!("{name}.n += {};", self.of(Kind::Int, inner)),
                _ => format!("{name}.mixin({});", self.of(Kind::Map, inner)),
            },
        }
    }

    /// A statement that throws, most times.
    fn failing(&mut self) -> String {
        let statements = [
            "missing_here;",
            "missing_function(1, \"a\");",
            "[1, 2][9];",
            "1 / 0;",
            "\"a\" * 2;",
            "let z = #{}; z.a.b.c;",
            "9223372036854775807 + 1;",
            "throw #{ code: 3 };",
            "throw \"a.b: c\";",
            "throw;",
            "parse_int(\"x\");",
            "assert(1 == 2);",
            "let y = 5; y.nothing();",
            "() + 1;",
            "const K = 1; K.x = 2;",
            "\"abc\"[7];",
        ];
        (*self.choices.of(&statements)).to_owned()
    }

    fn expression(&mut self, depth: usize) -> String {
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

    fn of(&mut self, kind: Kind, depth: usize) -> String {
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
