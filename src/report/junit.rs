//! JUnit XML, piece by piece, so that as many cases as there are can be written one after the other.
//! Knows nothing of what the cases are.
//!
//! The form is that of Jenkins and of Maven's Surefire, which what reads JUnit agrees on: `testsuites`, in it
//! `testsuite`, in it `testcase` with at most one of `failure`, `error` and `skipped`.

use std::borrow::Cow;

use quick_xml::escape::escape;

/// How many cases there are, and how many of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// All of them.
    pub tests: u64,
    /// That did not come out as wanted.
    pub failures: u64,
    /// That could not be carried out.
    pub errors: u64,
    /// That say nothing.
    pub skipped: u64,
}

impl Counts {
    /// Counts a case.
    pub fn add(&mut self, state: &State<'_>) {
        self.tests += 1;
        match state {
            State::Passed => {}
            State::Failed { .. } => self.failures += 1,
            State::Error { .. } => self.errors += 1,
            State::Skipped { .. } => self.skipped += 1,
        }
    }

    /// Adds another count.
    pub fn plus(&mut self, other: Counts) {
        self.tests += other.tests;
        self.failures += other.failures;
        self.errors += other.errors;
        self.skipped += other.skipped;
    }
}

/// How a case came out, with a line and a text that say why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State<'a> {
    /// As wanted.
    Passed,
    /// Not as wanted.
    Failed {
        /// In a line.
        message: Cow<'a, str>,
        /// In as many as it takes.
        text: Cow<'a, str>,
    },
    /// It could not be carried out.
    Error {
        /// In a line.
        message: Cow<'a, str>,
        /// In as many as it takes.
        text: Cow<'a, str>,
    },
    /// There is nothing to be said of it.
    Skipped {
        /// In a line.
        message: Cow<'a, str>,
        /// In as many as it takes.
        text: Cow<'a, str>,
    },
}

/// The beginning of a document.
pub fn begin(name: &str, counts: Counts) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"{}\" tests=\"{}\" failures=\"{}\" \
         errors=\"{}\">\n",
        attribute(name),
        counts.tests,
        counts.failures,
        counts.errors
    )
}

/// The end of a document.
pub const END: &str = "</testsuites>\n";

/// The beginning of a suite.
pub fn begin_suite(name: &str, counts: Counts) -> String {
    format!(
        "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\">\n",
        attribute(name),
        counts.tests,
        counts.failures,
        counts.errors,
        counts.skipped
    )
}

/// The end of a suite.
pub const END_SUITE: &str = "  </testsuite>\n";

/// A case: its name, its class, how long it took (seconds, where that was measured), how it came out.
pub fn case(name: &str, class: &str, seconds: Option<f64>, state: &State<'_>) -> String {
    let mut text =
        format!("    <testcase name=\"{}\" classname=\"{}\"", attribute(name), attribute(class));
    if let Some(seconds) = seconds {
        text.push_str(&format!(" time=\"{seconds:.3}\""));
    }
    let (tag, message, said) = match state {
        State::Passed => {
            text.push_str("/>\n");
            return text;
        }
        State::Failed { message, text } => ("failure", message, text),
        State::Error { message, text } => ("error", message, text),
        State::Skipped { message, text } => ("skipped", message, text),
    };
    let (message, said) = (attribute(message), content(said));
    text.push_str(&format!(
        ">\n      <{tag} message=\"{message}\">{said}</{tag}>\n    </testcase>\n"
    ));
    text
}

fn content(text: &str) -> String {
    // A reader makes a line feed of a carriage return that is not written so.
    escape(plain(text)).replace('\r', "&#13;")
}

fn attribute(text: &str) -> String {
    // And a space of every line break in an attribute.
    content(text).replace('\n', "&#10;").replace('\t', "&#9;")
}

/// Without the characters that XML 1.0 cannot hold.
fn plain(text: &str) -> String {
    let fits = |c: &char| {
        matches!(c, '\t' | '\n' | '\r') || (*c >= ' ' && !matches!(c, '\u{fffe}' | '\u{ffff}'))
    };
    text.chars().filter(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_said_comes_back() {
        let evil = "a\r\n\tb <c> & \"d\" ]]> 'e'";
        let state = State::Failed { message: evil.into(), text: evil.into() };
        let mut counts = Counts::default();
        counts.add(&state);
        counts.add(&State::Passed);
        let mut xml = begin("n\u{1}ame", counts) + &begin_suite("s", counts);
        xml += &(case(evil, "c", Some(1.5), &state) + END_SUITE + END);
        assert!(xml.contains("<testsuites name=\"name\" tests=\"2\" failures=\"1\" errors=\"0\">"));
        let said = "a&#13;\n\tb &lt;c&gt; &amp; &quot;d&quot; ]]&gt; &apos;e&apos;";
        let message = said.replace('\n', "&#10;").replace('\t', "&#9;");
        assert!(xml.contains(&format!("<failure message=\"{message}\">{said}</failure>")), "{xml}");
        assert!(
            xml.contains(&format!("<testcase name=\"{message}\" classname=\"c\" time=\"1.500\">"))
        );
    }
}
