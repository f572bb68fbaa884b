//! Binds imports of a core module to functions that it exports itself.

use std::collections::HashMap;
use std::convert::Infallible;

use anyhow::{Context, Result, anyhow};
use wasm_encoder::reencode::{Error, Reencode, utils};
use wasm_encoder::{ExportSection, ImportSection, Module};
use wasmparser::{Export, ExternalKind, Import, Imports, Parser, Payload, TypeRef};

/// Bind each function imported from `from` to the export `from.name`. Neither the imports nor the
/// exports are there afterwards.
///
/// # Errors
/// When one has no export of its name.
pub fn imports_to_exports(module: &[u8], from: &str) -> Result<Vec<u8>> {
    let (imports, exports) = functions(module)?;
    let is_bound = |import: &Import| import.module == from;
    let bound = u32::try_from(imports.iter().filter(|import| is_bound(import)).count())?;
    let mut kept = 0..;
    let imported = imports.iter().map(|import| {
        if !is_bound(import) {
            return kept.next().context("too many imports");
        }
        let name = format!("{from}.{}", import.name);
        let function = exports.get(name.as_str());
        let function = function.with_context(|| format!("the guest exports no `{name}`"))?;
        Ok(function - bound)
    });
    let mut binder = Binder {
        from,
        imported: imported.collect::<Result<_>>()?,
        bound,
    };
    let mut rewritten = Module::new();
    binder
        .parse_core_module(&mut rewritten, Parser::new(0), module)
        .map_err(|error| anyhow!("binding the imports: {error}"))?;
    Ok(rewritten.finish())
}

/// The functions that a module imports, in their order, and those that it exports.
fn functions(module: &[u8]) -> Result<(Vec<Import<'_>>, HashMap<&str, u32>)> {
    let (mut imports, mut exports) = (Vec::new(), HashMap::new());
    for payload in Parser::new(0).parse_all(module) {
        match payload? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    if matches!(import.ty, TypeRef::Func(_)) {
                        imports.push(import);
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export?;
                    if export.kind == ExternalKind::Func {
                        exports.insert(export.name, export.index);
                    }
                }
            }
            _ => {}
        }
    }
    Ok((imports, exports))
}

struct Binder<'a> {
    from: &'a str,
    /// The new index of each function that was imported.
    imported: Vec<u32>,
    /// How many of them are imported no more.
    bound: u32,
}

impl Reencode for Binder<'_> {
    type Error = Infallible;

    fn function_index(&mut self, function: u32) -> Result<u32, Error> {
        let imported = self.imported.get(function as usize);
        Ok(imported
            .copied()
            .unwrap_or(function.wrapping_sub(self.bound)))
    }

    fn parse_imports(
        &mut self,
        section: &mut ImportSection,
        imports: Imports<'_>,
    ) -> Result<(), Error> {
        match imports {
            Imports::Single(_, import) if import.module == self.from => Ok(()),
            imports => utils::parse_imports(self, section, imports),
        }
    }

    fn parse_export(
        &mut self,
        exports: &mut ExportSection,
        export: Export<'_>,
    ) -> Result<(), Error> {
        let name = export.name.strip_prefix(self.from);
        match name.is_some_and(|name| name.starts_with('.')) {
            true => Ok(()),
            false => utils::parse_export(self, exports, export),
        }
    }
}
