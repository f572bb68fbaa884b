//! Makes scripts of all that the language has, most of them valid, each from a number.

mod expressions;

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
}
