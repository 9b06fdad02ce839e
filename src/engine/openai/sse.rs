//! Bytes of a stream of server-sent events to the data of each event, without a copy where an event lies
//! whole in one read. Knows nothing of what the data mean (HTML standard, § 9.2.6).

/// Cuts a stream into events.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// The start of a line whose end has not come.
    partial: Vec<u8>,
    /// Data lines of an event that has more than one.
    data: Vec<u8>,
    lines: usize,
}

impl Events {
    /// Takes what was read and calls `event` with the data of every event that is complete.
    pub(super) fn read<E>(
        &mut self,
        mut bytes: &[u8],
        mut event: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.partial.is_empty() {
            let Some(end) = memchr::memchr(b'\n', bytes) else {
                self.partial.extend_from_slice(bytes);
                return Ok(());
            };
            self.partial.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.partial);
            // The line of data that usually is the whole event: its blank line follows.
            bytes = self.line(&line, bytes, &mut event)?;
            self.partial = line;
            self.partial.clear();
        }
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            bytes = self.line(&bytes[..end], &bytes[end + 1..], &mut event)?;
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    /// Takes a line; returns the rest without the blank line that ends the event, if it is there.
    fn line<'a, E>(
        &mut self,
        line: &[u8],
        rest: &'a [u8],
        event: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<&'a [u8], E> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            if self.lines > 0 {
                self.lines = 0;
                let data = std::mem::take(&mut self.data);
                event(&data)?;
                self.data = data;
                self.data.clear();
            }
            return Ok(rest);
        }
        // Not in the standard: llama.cpp says so what went wrong.
        if let Some(error) = line.strip_prefix(b"error:") {
            event(&[b"{\"error\":".as_slice(), error, b"}"].concat())?;
            return Ok(rest);
        }
        // Comments, which keep a connection alive, and names of events say nothing here.
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(rest) };
        let data = data.strip_prefix(b" ").unwrap_or(data);
        let blank = rest.strip_prefix(b"\n").or_else(|| rest.strip_prefix(b"\r\n"));
        if let (0, Some(rest)) = (self.lines, blank) {
            event(data)?;
            return Ok(rest);
        }
        if self.lines > 0 {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(data);
        self.lines += 1;
        Ok(rest)
    }

    /// Bytes kept between reads.
    pub(super) fn pending(&self) -> usize {
        self.partial.len() + self.data.len()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<String> {
        let (mut events, mut out) = (Events::default(), Vec::new());
        for piece in pieces {
            let Ok(()) = events.read(piece, |data| {
                out.push(String::from_utf8_lossy(data).into_owned());
                Ok::<_, Infallible>(())
            });
        }
        out
    }

    const STREAM: &str = ": hello\n\ndata: {\"a\": \"ä\"}\n\nevent: x\ndata:two\r\ndata: lines\r\n\r\n\
                          id: 7\ndata: 3\n\ndata: [DONE]\n\ndata: torn";
    const WANTED: [&str; 4] = ["{\"a\": \"ä\"}", "two\nlines", "3", "[DONE]"];

    #[test]
    fn events_are_the_same_however_the_stream_is_read() {
        let bytes = STREAM.as_bytes();
        assert_eq!(cut(&[bytes]), WANTED);
        for at in 0..bytes.len() {
            assert_eq!(cut(&[&bytes[..at], &bytes[at..]]), WANTED, "cut at {at}");
        }
        let each: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(cut(&each), WANTED);
    }

    #[test]
    fn a_line_that_says_error_is_an_event() {
        assert_eq!(cut(&[b"error: {\"code\":400}\n\n"]), ["{\"error\": {\"code\":400}}"]);
    }

    #[test]
    fn an_error_ends_the_reading() {
        let mut events = Events::default();
        let mut seen = 0;
        let result = events.read(b"data: 1\n\ndata: 2\n\n", |_| {
            seen += 1;
            Err("no")
        });
        assert_eq!((result, seen), (Err("no"), 1));
    }
}
