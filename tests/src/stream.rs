//! A reader of Server-Sent Events, on a plain connection that can be cut, starved and counted.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

/// An event of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Its id, if it has one.
    pub id: Option<String>,
    /// Its data, as JSON.
    pub data: Value,
}

/// A stream that is over.
#[derive(Debug)]
pub struct Ended;

/// An open stream, or the answer that there is none.
pub struct EventStream {
    /// The status of the answer.
    pub status: u16,
    /// The header of the answer, in lower case.
    pub header: String,
    socket: TcpStream,
    events: mpsc::Receiver<Event>,
}

impl EventStream {
    /// Ask for a stream.
    ///
    /// # Errors
    /// When the connection ends before there is an answer.
    pub fn open(
        address: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, std::io::Error> {
        let address = address.trim_start_matches("http://");
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut request = format!("GET {path} HTTP/1.1\r\naccept: text/event-stream\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            request.push_str(&format!("host: {address}\r\n"));
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        socket.write_all(request.as_bytes())?;
        let mut reader = BufReader::new(socket.try_clone()?);
        let mut header = String::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if line == "\r\n" {
                break;
            }
            header.push_str(&line.to_ascii_lowercase());
        }
        let status = header.split(' ').nth(1).and_then(|word| word.parse().ok());
        let is_chunked = header.contains("transfer-encoding: chunked");
        let (told, events) = mpsc::channel();
        std::thread::spawn(move || match is_chunked {
            true => read_events(
                BufReader::new(Chunks {
                    inner: reader,
                    left: 0,
                }),
                &told,
            ),
            false => read_events(reader, &told),
        });
        Ok(Self {
            status: status.unwrap_or(0),
            header,
            socket,
            events,
        })
    }

    /// The next event; none when the stream has ended.
    ///
    /// # Panics
    /// When nothing comes for half a minute.
    #[track_caller]
    pub fn next(&self) -> Option<Event> {
        match self.events.recv_timeout(Duration::from_secs(30)) {
            Ok(event) => Some(event),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("waited in vain for an event"),
        }
    }

    /// The next event if one comes within a time.
    ///
    /// # Errors
    /// When the stream has ended.
    pub fn next_within(&self, time: Duration) -> Result<Option<Event>, Ended> {
        match self.events.recv_timeout(time) {
            Ok(event) => Ok(Some(event)),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(Ended),
        }
    }

    /// The next event, which has this name.
    ///
    /// # Panics
    /// When it has another, or there is none.
    #[track_caller]
    pub fn expect(&self, name: &str) -> Event {
        let event = self.next();
        let event = event.unwrap_or_else(|| panic!("the stream ended before `{name}`"));
        assert_eq!(event.name, name, "{event:?}");
        event
    }

    /// What the next `count` messages say.
    #[track_caller]
    pub fn messages(&self, count: usize) -> Vec<Value> {
        let message = |_| self.expect("message").data["message"].clone();
        (0..count).map(message).collect()
    }

    /// Whether nothing more comes for a while.
    pub fn is_silent(&self, for_ms: u64) -> bool {
        let heard = self.events.recv_timeout(Duration::from_millis(for_ms));
        matches!(heard, Err(mpsc::RecvTimeoutError::Timeout))
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

fn read_events(reader: impl BufRead, told: &mpsc::Sender<Event>) {
    let (mut name, mut id, mut data) = (String::new(), None, String::new());
    for line in reader.lines().map_while(Result::ok) {
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" if line.is_empty() => {
                if name.is_empty() && data.is_empty() {
                    continue;
                }
                let event = Event {
                    name: std::mem::take(&mut name),
                    id: id.take(),
                    data: serde_json::from_str(&data).unwrap_or_default(),
                };
                data.clear();
                if told.send(event).is_err() {
                    return;
                }
            }
            "event" => name = value.to_owned(),
            "id" => id = Some(value.to_owned()),
            "data" => data.push_str(value),
            _ => {}
        }
    }
}

/// A body in chunks.
struct Chunks<R> {
    inner: R,
    left: usize,
}

impl<R: BufRead> Read for Chunks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            let mut size = String::new();
            // The end of the chunk before is an empty line.
            while size.trim().is_empty() {
                size.clear();
                if self.inner.read_line(&mut size)? == 0 {
                    return Ok(0);
                }
            }
            self.left = usize::from_str_radix(size.trim(), 16)
                .map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidData))?;
            if self.left == 0 {
                return Ok(0);
            }
        }
        let most = buffer.len().min(self.left);
        let read = self.inner.read(&mut buffer[..most])?;
        self.left -= read;
        Ok(read)
    }
}
