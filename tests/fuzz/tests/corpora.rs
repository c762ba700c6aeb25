//! Replays every input that fuzzers have kept, and the seeds.

use std::fs;
use std::path::Path;

use posada_fuzz::TARGETS;

#[test]
fn no_input_that_was_ever_of_interest_breaks_a_device() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in TARGETS {
        let corpus = corpora.join(target.name);
        let inputs = fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
        let mut count = 0;
        for input in inputs {
            let path = input.unwrap().path();
            println!("{}", path.display());
            (target.run)(&fs::read(&path).unwrap());
            count += 1;
        }
        assert_ne!(count, 0, "{} is empty", corpus.display());
    }
}
