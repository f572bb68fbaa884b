//! Components to upload: one that runs, and one that nobody wants to compile.

/// A component that runs.
pub const FIXTURE: &[u8] = include_bytes!("../fixtures/function-v1.wasm");

fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// A section of a module or a component.
pub fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id], leb(content.len()).as_slice(), content].concat()
}

/// The same component under a hash of its own: nothing that was compiled is found for it.
pub fn unique(component: &[u8]) -> Vec<u8> {
    let custom = [b"\x04test", uuid::Uuid::now_v7().as_bytes().as_slice()].concat();
    [component, &section(0, &custom)].concat()
}

/// A component that runs, but for a function that takes minutes to compile: half a megabyte of nested
/// blocks.
pub fn bomb() -> Vec<u8> {
    const DEPTH: usize = 300_000;
    let body = [
        b"\0".as_slice(),
        &b"\x02\x40".repeat(DEPTH),
        &b"\x0b".repeat(DEPTH),
        b"\x0b",
    ]
    .concat();
    let module = [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, b"\x01\x60\0\0"),
        section(3, b"\x01\0"),
        section(10, &[b"\x01".to_vec(), leb(body.len()), body].concat()),
    ]
    .concat();
    unique(&[FIXTURE, &section(1, &module)].concat())
}
