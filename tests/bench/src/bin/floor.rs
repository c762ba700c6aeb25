//! The floor as a process of its own: runs the guest that its argument names, output on standard output.

use posada_bench::bare_vm::BareVm;
use posada_bench::programs;
use posada_tests::payload;

fn main() {
    let code = match std::env::args().nth(1).as_deref() {
        Some("hello") => payload::hello(),
        Some("touch") => programs::touch(),
        other => panic!("usage: floor hello|touch, not {other:?}"),
    };
    let mut output = std::fs::File::from(
        std::os::fd::AsFd::as_fd(&std::io::stdout())
            .try_clone_to_owned()
            .expect("standard output"),
    );
    BareVm::new(code).run(&mut output);
}
