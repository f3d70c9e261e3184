//! The checked-in header is the one that the source gives.

use std::path::Path;

#[test]
fn the_header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for name in ["status", "tensor", "attention", "merge", "gpu"] {
        builder = builder.with_src(root.join(format!("src/{name}.rs")));
    }
    let mut generated = Vec::new();
    builder.generate().unwrap().write(&mut generated);
    let generated = String::from_utf8(generated).unwrap();
    let modules = std::fs::read_dir(root.join("src")).unwrap().count();
    assert_eq!(modules, 6, "the list above names every module");
    let path = root.join("include/sage_attn.h");
    if std::env::var("SAGE_ATTN_WRITE_HEADER").is_ok_and(|value| value == "1") {
        std::fs::write(&path, &generated).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == generated,
        "include/sage_attn.h is not that of the source; write it with \
         SAGE_ATTN_WRITE_HEADER=1 cargo test -p sage-attn-capi --test header"
    );
}
