//! The house format of manifests and flow templates: only what stands between words changes, so comments, the order of
//! keys and every string stay. Knows nothing of what keys mean.
//!
//! One space around `=`, none inside of headers, an empty line before each header and never two. A list stands on one
//! line if it fits into [`WIDTH`] columns; else, or if it is written on several lines with a comma at its end, each of
//! its items has a line of its own. Comments at the end of a line keep their distance.

use toml_parser::Source;
use toml_parser::lexer::{Token, TokenKind as Kind};

/// Longest line into which a list is drawn together.
pub const WIDTH: usize = 100;
/// In front of an item of a list with lines.
const INDENT: &str = "    ";

/// A file that is TOML, in the house format.
pub fn format(text: &str) -> String {
    let text = text.replace("\r\n", "\n");
    let tokens = Source::new(&text).lex().into_vec();
    let mut reader = Reader { text: &text, tokens: &tokens, at: 0 };
    let mut page = Page::default();
    loop {
        reader.skip_spaces();
        match reader.kind() {
            Kind::Eof => break,
            Kind::Newline => {
                page.newlines += 1;
                reader.at += 1;
            }
            Kind::Comment => page.line(reader.take().trim_end().to_owned(), true),
            Kind::LeftSquareBracket => {
                let header = reader.header();
                page.header(header + &reader.comment_at_end());
            }
            _ => {
                let key = reader.key();
                let value = reader.value();
                let indent = key.chars().count() + 3;
                let line = format!("{key} = {}", value.text("", indent));
                page.line(line + &reader.comment_at_end(), false);
            }
        }
    }
    match page.lines.is_empty() {
        true => String::new(),
        false => page.lines.join("\n") + "\n",
    }
}

/// Lines as they will stand.
#[derive(Default)]
struct Page {
    lines: Vec<String>,
    /// Where the comments begin that nothing but comments follows so far.
    comments: Option<usize>,
    /// Ends of lines since the last line.
    newlines: usize,
}

impl Page {
    fn line(&mut self, line: String, is_comment: bool) {
        if self.newlines > 1 && !self.lines.is_empty() {
            self.lines.push(String::new());
            self.comments = None;
        }
        self.newlines = 0;
        match is_comment {
            true => self.comments = self.comments.or(Some(self.lines.len())),
            false => self.comments = None,
        }
        self.lines.push(line);
    }

    /// A header has an empty line before it, or before the comments that stand right above it.
    fn header(&mut self, line: String) {
        let place = match self.comments {
            Some(place) if self.newlines < 2 => place,
            _ => self.lines.len(),
        };
        if place > 0 && !self.lines[place - 1].is_empty() {
            self.lines.insert(place, String::new());
            self.newlines = 0;
        }
        self.newlines = self.newlines.min(1);
        self.line(line, false);
    }
}

/// A value, with what stands between its parts taken out.
enum Value<'a> {
    /// Anything on one line, and strings on several.
    Scalar(&'a str),
    /// A list.
    List {
        parts: Vec<Part<'a>>,
        /// Its lines are to stay.
        keeps_lines: bool,
    },
    /// An inline table.
    Table(Vec<(String, Value<'a>)>),
    /// An inline table with comments in it, as it stands.
    Verbatim(&'a str),
}

/// What stands in a list.
enum Part<'a> {
    Item(Value<'a>, Option<&'a str>),
    Comment(&'a str),
}

impl Value<'_> {
    /// On one line, if it may be.
    fn on_one_line(&self) -> Option<String> {
        Some(match self {
            Value::Scalar(text) => (*text).to_owned(),
            Value::Verbatim(_) | Value::List { keeps_lines: true, .. } => return None,
            Value::List { parts, .. } => {
                let item = |part: &Part<'_>| match part {
                    Part::Item(value, None) => value.on_one_line(),
                    _ => None,
                };
                format!("[{}]", parts.iter().map(item).collect::<Option<Vec<_>>>()?.join(", "))
            }
            Value::Table(fields) if fields.is_empty() => "{}".to_owned(),
            Value::Table(fields) => {
                let field = |(key, value): &(String, Value<'_>)| {
                    Some(format!("{key} = {}", value.on_one_line()?))
                };
                format!(
                    "{{ {} }}",
                    fields.iter().map(field).collect::<Option<Vec<_>>>()?.join(", ")
                )
            }
        })
    }

    /// As it will stand after so many columns, its further lines behind `indent`.
    fn text(&self, indent: &str, columns: usize) -> String {
        if let Some(line) = self.on_one_line() {
            let is_list = matches!(self, Value::List { parts, .. } if !parts.is_empty());
            if !is_list || columns + line.chars().count() <= WIDTH {
                return line;
            }
        }
        match self {
            Value::Scalar(text) | Value::Verbatim(text) => (*text).to_owned(),
            Value::Table(fields) => {
                let field = |(key, value): &(String, Value<'_>)| {
                    format!("{key} = {}", value.text(indent, WIDTH))
                };
                format!("{{ {} }}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
            }
            Value::List { parts, .. } => {
                let deeper = format!("{indent}{INDENT}");
                let mut out = "[\n".to_owned();
                for part in parts {
                    out.push_str(&deeper);
                    match part {
                        Part::Comment(comment) => out.push_str(comment.trim_end()),
                        Part::Item(value, comment) => {
                            out.push_str(&value.text(&deeper, deeper.len() + 1));
                            out.push(',');
                            if let Some(comment) = comment {
                                out.push_str(&format!(" {}", comment.trim_end()));
                            }
                        }
                    }
                    out.push('\n');
                }
                out.push_str(&format!("{indent}]"));
                out
            }
        }
    }
}

/// Walks over tokens.
struct Reader<'a> {
    text: &'a str,
    tokens: &'a [Token],
    at: usize,
}

impl<'a> Reader<'a> {
    fn kind(&self) -> Kind {
        self.tokens.get(self.at).map_or(Kind::Eof, Token::kind)
    }

    /// The token, and on to the next.
    fn take(&mut self) -> &'a str {
        let span = self.tokens[self.at].span();
        self.at += 1;
        &self.text[span.start()..span.end()]
    }

    fn skip_spaces(&mut self) {
        while self.kind() == Kind::Whitespace {
            self.at += 1;
        }
    }

    /// `[a.b]` or `[[a.b]]`, without spaces.
    fn header(&mut self) -> String {
        let mut out = String::new();
        while !matches!(self.kind(), Kind::Newline | Kind::Comment | Kind::Eof) {
            let is_space = self.kind() == Kind::Whitespace;
            // The space before a comment is the comment's.
            if is_space && self.tokens.get(self.at + 1).map(Token::kind) == Some(Kind::Comment) {
                break;
            }
            let text = self.take();
            if !is_space {
                out.push_str(text);
            }
        }
        out
    }

    /// A key with its dots, and past the `=`.
    fn key(&mut self) -> String {
        let mut out = String::new();
        while !matches!(self.kind(), Kind::Equals | Kind::Newline | Kind::Eof) {
            let is_space = self.kind() == Kind::Whitespace;
            let text = self.take();
            if !is_space {
                out.push_str(text);
            }
        }
        if self.kind() == Kind::Equals {
            self.at += 1;
        }
        out
    }

    /// What stands behind a value or a header, with the space before it.
    fn comment_at_end(&mut self) -> String {
        let mut space = "";
        if self.kind() == Kind::Whitespace {
            space = self.take();
        }
        if self.kind() != Kind::Comment {
            return String::new();
        }
        let space = if space.is_empty() { " " } else { space };
        format!("{space}{}", self.take().trim_end())
    }

    fn value(&mut self) -> Value<'a> {
        self.skip_spaces();
        match self.kind() {
            Kind::LeftSquareBracket => self.list(),
            Kind::LeftCurlyBracket => self.table(),
            _ => self.scalar(),
        }
    }

    /// A string, or what is written with letters, digits and dots: a date may have a space in it.
    fn scalar(&mut self) -> Value<'a> {
        let start = self.tokens[self.at].span().start();
        let mut end = start;
        loop {
            match self.kind() {
                Kind::Whitespace
                    if self.tokens.get(self.at + 1).map(Token::kind) == Some(Kind::Atom) =>
                {
                    self.at += 1;
                }
                Kind::Atom
                | Kind::Dot
                | Kind::BasicString
                | Kind::LiteralString
                | Kind::MlBasicString
                | Kind::MlLiteralString => {
                    end = self.tokens[self.at].span().end();
                    self.at += 1;
                }
                _ => return Value::Scalar(&self.text[start..end]),
            }
        }
    }

    fn list(&mut self) -> Value<'a> {
        self.at += 1;
        let (mut parts, mut keeps_lines) = (Vec::new(), false);
        let (mut has_lines, mut ends_with_comma) = (false, false);
        // Whether a line has ended since the last item.
        let mut on_new_line = true;
        loop {
            match self.kind() {
                Kind::Whitespace => self.at += 1,
                Kind::Newline => {
                    (has_lines, on_new_line) = (true, true);
                    self.at += 1;
                }
                Kind::Comma => {
                    ends_with_comma = true;
                    self.at += 1;
                }
                Kind::Comment => {
                    keeps_lines = true;
                    let comment = self.take();
                    match parts.last_mut() {
                        Some(Part::Item(_, behind @ None)) if !on_new_line => {
                            *behind = Some(comment)
                        }
                        _ => parts.push(Part::Comment(comment)),
                    }
                }
                Kind::RightSquareBracket | Kind::Eof => {
                    self.at += 1;
                    break;
                }
                _ => {
                    parts.push(Part::Item(self.value(), None));
                    (ends_with_comma, on_new_line) = (false, false);
                }
            }
        }
        keeps_lines |= has_lines && ends_with_comma;
        Value::List { parts, keeps_lines }
    }

    fn table(&mut self) -> Value<'a> {
        let start = self.tokens[self.at].span().start();
        self.at += 1;
        let (mut fields, mut has_comment) = (Vec::new(), false);
        loop {
            match self.kind() {
                Kind::Whitespace | Kind::Newline | Kind::Comma => self.at += 1,
                Kind::Comment => {
                    has_comment = true;
                    self.at += 1;
                }
                Kind::RightCurlyBracket | Kind::Eof => {
                    self.at += 1;
                    break;
                }
                _ => {
                    let key = self.key();
                    fields.push((key, self.value()));
                }
            }
        }
        let end = self.tokens[self.at.min(self.tokens.len()) - 1].span().end();
        match has_comment {
            true => Value::Verbatim(&self.text[start..end]),
            false => Value::Table(fields),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(before: &str, after: &str) {
        let got = format(before);
        assert_eq!(got, after);
        assert_eq!(format(&got), got, "a second time changes it again");
        let read = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
        assert_eq!(read(before), read(&got), "it means something else");
    }

    #[test]
    fn spaces_and_lines() {
        check("\n\n[ a . 'b' ]\nx=1\n\n\n\ny  =  2.5\n[c]", "[a.'b']\nx = 1\n\ny = 2.5\n\n[c]\n");
        check("a = 1\r\nb.  c = true\r\n", "a = 1\nb.c = true\n");
        check("  a = 1\n\t[[ b ]]\n", "a = 1\n\n[[b]]\n");
        check("\n", "");
    }

    #[test]
    fn comments_stay_where_they_are() {
        check(
            "#:schema ./x.json\n# what it is\n[a]   # first\nx = 1      # near\ny = 2# far\n# of b\n[b]\n# at the end  ",
            "#:schema ./x.json\n# what it is\n[a]   # first\nx = 1      # near\ny = 2 # far\n\n# of b\n[b]\n# at the end\n",
        );
        check("a = 1\n# alone\n\n[b]\n", "a = 1\n# alone\n\n[b]\n");
    }

    #[test]
    fn lists() {
        check("a=[ 1,2 , 3 ]\nb = [\n 1,\n 2\n]\n", "a = [1, 2, 3]\nb = [1, 2]\n");
        // A comma at the end keeps the lines.
        check("b = [\n 1,\n 2,\n]\n", "b = [\n    1,\n    2,\n]\n");
        check(
            "b = [ # head\n 1, # one\n # between\n 2 ]\n",
            "b = [\n    # head\n    1, # one\n    # between\n    2,\n]\n",
        );
        let long: Vec<String> = (0..9).map(|n| format!("\"word number {n}\"")).collect();
        let lines: String = long.iter().map(|word| format!("    {word},\n")).collect();
        check(&format!("words = [{}]\n", long.join(",")), &format!("words = [\n{lines}]\n"));
        check("a = []\nb = [\n]\nc = [[1,2],[ ]]\n", "a = []\nb = []\nc = [[1, 2], []]\n");
    }

    #[test]
    fn tables_and_strings() {
        check("a={x=1,y={ }}\n", "a = { x = 1, y = {} }\n");
        check(
            "a = \"\"\"\n  x\n\n\n y = [ 1 ]\n\"\"\"\nb = 'C:\\x'\n",
            "a = \"\"\"\n  x\n\n\n y = [ 1 ]\n\"\"\"\nb = 'C:\\x'\n",
        );
        check(
            "a = { when = \"[ 1,2 ] # {{ x }}\",reply=\"y\" }\n",
            "a = { when = \"[ 1,2 ] # {{ x }}\", reply = \"y\" }\n",
        );
        check("a = [ {x=1}, {x=2} ]\n", "a = [{ x = 1 }, { x = 2 }]\n");
        check("d = 1979-05-27 07:32:00\n", "d = 1979-05-27 07:32:00\n");
    }
}
