//! A script that can run: as Rhai's bytecode where that does what the language says, and else as
//! the tree that was parsed.

use std::collections::BTreeSet;

use rhai::grain::{Compiler, Program, SharedProgram};
use rhai::{AST, ASTFlags, ASTNode, Expr, ImmutableString, Position, Stmt};

use crate::outcome::{self, Diagnostic};

/// The most nodes of a tree that bytecode is made of: the time that this takes grows with their
/// square.
const COMPILED_NODES_MAX: usize = 4_000;

/// The most items of a literal that bytecode is made of: of one with 1,400 members it took longer than
/// a script may run.
const COMPILED_ITEMS_MAX: usize = 200;

/// A script that can run.
pub struct Script {
    /// What runs.
    pub form: Form,
    /// Whether a closure captures `ctx`.
    pub captures_ctx: bool,
}

/// What runs.
pub enum Form {
    /// Rhai's bytecode. It shares nothing with the engine.
    Bytecode(SharedProgram),
    /// The tree.
    Tree(AST),
}

/// What [`compile`] made, for [`Compiled::load`] to make a [`Script`] of.
pub struct Compiled {
    bytes: Vec<u8>,
}

impl Compiled {
    /// The script; none where the bytes are none of [`compile`]'s.
    pub fn load(&self) -> Option<Script> {
        let program = Program::read(&self.bytes).ok()?.into_owned().into_shared();
        Some(Script {
            form: Form::Bytecode(program),
            captures_ctx: false,
        })
    }
}

/// The script that runs `tree` as it is.
pub fn of_tree(tree: AST) -> Script {
    let captures_ctx = Seen::of(&tree).captures_ctx;
    Script {
        form: Form::Tree(tree),
        captures_ctx,
    }
}

/// Compile what was parsed to bytecode; none where that would not do what the tree does, or take
/// too long. [`of_tree`] takes any script.
///
/// A function that is called by its name or as a closure is where the two differ, and where the
/// tree is faster: a native function that calls back has to find the bytecode's functions anew.
pub fn compile(tree: &AST) -> Option<Compiled> {
    let seen = Seen::of(tree);
    if seen.needs_tree || seen.nodes > COMPILED_NODES_MAX {
        return None;
    }
    let program = Compiler::new().compile(tree);
    if program.makes_fn_pointers() {
        return None;
    }
    let bytes = program.write().ok()?;
    // Not all that Rhai writes it reads again.
    Program::read(&bytes).ok()?;
    Some(Compiled { bytes })
}

/// What can be told of a script before it runs, and must be before it is deployed.
///
/// # Errors
/// What is wrong with it.
pub fn check(tree: &AST) -> Result<(), Vec<Diagnostic>> {
    match Seen::of(tree).import {
        Some(position) => Err(vec![outcome::diagnostic_at(
            "there is nothing to import: every script stands alone",
            position,
        )]),
        None => Ok(()),
    }
}

/// What a walk through a tree saw.
#[derive(Default)]
struct Seen {
    nodes: usize,
    /// The names of the constants so far.
    constants: BTreeSet<ImmutableString>,
    captures_ctx: bool,
    needs_tree: bool,
    import: Option<Position>,
}

impl Seen {
    fn of(tree: &AST) -> Self {
        let functions: BTreeSet<&str> = tree.iter_functions().map(|known| known.name).collect();
        let mut seen = Self::default();
        tree.walk(&mut |path| {
            if let Some(node) = path.last() {
                seen.node(node, &functions);
            }
            true
        });
        seen
    }

    fn node(&mut self, node: &ASTNode<'_>, functions: &BTreeSet<&str>) {
        self.nodes += 1;
        match node {
            ASTNode::Expr(Expr::Variable(variable, ..)) => {
                self.needs_tree |= functions.contains(variable.1.as_str());
            }
            ASTNode::Expr(Expr::StringConstant(text, _)) => {
                self.needs_tree |= functions.contains(text.as_str());
            }
            ASTNode::Expr(Expr::Map(members, _)) => {
                self.needs_tree |= members.0.len() > COMPILED_ITEMS_MAX;
            }
            ASTNode::Expr(Expr::Array(items, _)) => {
                self.needs_tree |= items.len() > COMPILED_ITEMS_MAX;
            }
            ASTNode::Stmt(Stmt::Var(declared, flags, _)) if flags.contains(ASTFlags::CONSTANT) => {
                self.constants.insert(declared.0.name.clone());
            }
            // Bytecode lets `x[0] = 1` pass where `x` has no items, and refuses `x.a = 1` where `x` is
            // a constant that has no `a` yet.
            ASTNode::Stmt(Stmt::Assignment(assignment)) => {
                let target = &assignment.1.lhs;
                self.needs_tree |= ends_in_index(target)
                    || member_of(target).is_some_and(|name| self.constants.contains(name));
            }
            ASTNode::Stmt(Stmt::Share(shared)) => {
                self.captures_ctx |= shared.iter().any(|(name, _)| name.as_str() == "ctx");
            }
            ASTNode::Stmt(Stmt::Import(_, position)) => {
                self.import.get_or_insert(*position);
            }
            _ => {}
        }
    }
}

/// The variable in whose member `a.b.c` ends.
fn member_of(target: &Expr) -> Option<&str> {
    let (Expr::Dot(step, ..) | Expr::Index(step, ..)) = target else {
        return None;
    };
    match &step.lhs {
        Expr::Variable(variable, ..) => Some(variable.1.as_str()),
        _ => None,
    }
}

/// Whether the last step of `a.b[i]` is an index.
fn ends_in_index(target: &Expr) -> bool {
    match target {
        Expr::Index(step, ..) => match &step.rhs {
            rest @ (Expr::Index(..) | Expr::Dot(..)) => ends_in_index(rest),
            _ => true,
        },
        Expr::Dot(step, ..) => ends_in_index(&step.rhs),
        _ => false,
    }
}
