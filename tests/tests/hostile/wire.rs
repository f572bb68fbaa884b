//! Connections of the attacker, who writes what it likes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::neighbour::Attacked;

/// Where the attacker's connections come from: shares of one address are not the neighbour's.
const FROM: &str = "127.0.0.2:0";

pub fn connect(attacked: &Attacked) -> TcpStream {
    let server = attacked.server.url.trim_start_matches("http://");
    let server: SocketAddr = server.parse().unwrap();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&FROM.parse::<SocketAddr>().unwrap().into())
        .unwrap();
    socket.connect(&server.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    stream
}

/// All that comes until the server ends the connection.
#[track_caller]
pub fn until_its_end(mut stream: TcpStream) -> Vec<u8> {
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer);
    let is_open = ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    assert!(!is_open, "the connection is still open");
    answer
}

/// What comes back for these bytes until the server ends the connection.
#[track_caller]
pub fn ask(attacked: &Attacked, bytes: &[u8]) -> String {
    let mut stream = connect(attacked);
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(bytes);
    String::from_utf8_lossy(&until_its_end(stream)).into_owned()
}

/// The status that an answer begins with, if it does.
pub fn status(answer: &str) -> Option<String> {
    answer.split(' ').nth(1).map(str::to_owned)
}
