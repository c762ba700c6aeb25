//! The connections that there are: by number, and by the ports that a packet names.

use std::collections::HashMap;

use super::connection::{Connection, Key};

/// Most connections at a time. Each has a descriptor of posada's, of which a process has 1024 unless told otherwise.
pub const MAX_CONNECTIONS: usize = 512;
/// Where ports that posada gives to host programs begin; those below are for programs to listen at.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// At most [`MAX_CONNECTIONS`], each with a number that stays its own.
#[derive(Default)]
pub struct Table {
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Those that the guest can name.
    numbers: HashMap<Key, usize>,
    given_ports: u32,
}

impl Table {
    /// Takes a connection in; gives it back if there are too many.
    pub fn insert(&mut self, connection: Connection) -> Result<usize, Connection> {
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.connections.len() < MAX_CONNECTIONS => {
                self.connections.push(None);
                self.connections.len() - 1
            }
            None => return Err(connection),
        };
        self.numbers.insert(connection.key, number);
        self.connections[number] = Some(connection);
        Ok(number)
    }

    pub fn find(&self, key: Key) -> Option<usize> {
        self.numbers.get(&key).copied()
    }

    pub fn get_mut(&mut self, number: usize) -> Option<&mut Connection> {
        self.connections.get_mut(number)?.as_mut()
    }

    /// Makes a connection one that the guest cannot name any more.
    pub fn forget_key(&mut self, number: usize) {
        if let Some(Some(connection)) = self.connections.get(number)
            && self.numbers.get(&connection.key) == Some(&number)
        {
            self.numbers.remove(&connection.key);
        }
    }

    pub fn remove(&mut self, number: usize) -> Option<Connection> {
        self.forget_key(number);
        let connection = self.connections.get_mut(number)?.take()?;
        self.free.push(number);
        Some(connection)
    }

    /// A port of the host's for a connection to `guest_port` that has none yet.
    pub fn new_key(&mut self, guest_port: u32) -> Key {
        loop {
            let host_port = FIRST_HOST_PORT + self.given_ports % FIRST_HOST_PORT;
            self.given_ports = self.given_ports.wrapping_add(1);
            let key = Key {
                guest_port,
                host_port,
            };
            if !self.numbers.contains_key(&key) {
                return key;
            }
        }
    }

    pub fn all_mut(&mut self) -> impl Iterator<Item = (usize, &mut Connection)> {
        let all = self.connections.iter_mut().enumerate();
        all.filter_map(|(number, place)| Some((number, place.as_mut()?)))
    }

    pub fn drain(&mut self) -> impl Iterator<Item = Connection> {
        self.numbers.clear();
        self.free.clear();
        self.connections.drain(..).flatten()
    }
}
