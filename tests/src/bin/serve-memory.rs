//! `serve-memory SOCKET FILE [PAGES]`: serves one guest's memory from FILE; ends when the guest does, or after PAGES pages.

use std::error::Error;
use std::fs::File;
use std::os::unix::net::UnixListener;

use posada_tests::memory_handler::{Figures, MemoryHandler};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, file, pages @ ..] = arguments.as_slice() else {
        return Err("usage: serve-memory SOCKET FILE [PAGES]".into());
    };
    let most = pages.first().map_or(Ok(u64::MAX), |pages| pages.parse())?;
    let listener = UnixListener::bind(socket)?;
    println!("listening");
    let (connection, _) = listener.accept()?;
    let Figures {
        served,
        zeros,
        dropped,
    } = MemoryHandler::new(connection, File::open(file)?)?.serve(most)?;
    println!("served={served} zeros={zeros} dropped={dropped}");
    Ok(())
}
