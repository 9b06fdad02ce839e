//! What a target accepts. Knows nothing of answers.
//!
//! Lists of accepted answers, above all those made of the titles of an encyclopedia, write notes in brackets
//! at the end: "Gertrude Bell (film)", "PRINCE WILLIAM (accept DUKE OF CAMBRIDGE)". An answer without the note
//! is right, and one that holds nothing but the note is not.

use super::normal;

/// Letters without which brackets hold no note: `f (x)` is not "f".
const NOTE_LETTERS: usize = 3;

/// Words that begin a further answer.
const ACCEPT: &[&str] = &["also accept", "or accept", "accept", "also", "or", "aka", "a.k.a."];

/// Normal forms of what a target accepts.
pub(super) struct Accepted {
    /// The target as it stands.
    pub(super) whole: String,
    /// What has to be said: the target without its note, further answers; where there is no note, nothing.
    pub(super) cores: Vec<String>,
}

impl Accepted {
    /// What an answer is held against, in parts.
    pub(super) fn cores(&self) -> impl Iterator<Item = &str> {
        let whole = self.cores.is_empty().then_some(self.whole.as_str());
        whole.into_iter().chain(self.cores.iter().map(String::as_str))
    }

    /// Everything that is accepted as a whole.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.whole.as_str()).chain(self.cores.iter().map(String::as_str))
    }
}

/// Reads a target.
pub(super) fn accepted(target: &str) -> Accepted {
    let whole = normal::text(target);
    let Some((core, note)) = note(target) else { return Accepted { whole, cores: Vec::new() } };
    let mut cores = vec![normal::text(core)];
    let lower = note.to_ascii_lowercase();
    let further = ACCEPT.iter().find_map(|word| {
        let rest = lower.strip_prefix(word)?;
        let rest = rest.strip_prefix(':').unwrap_or(rest);
        rest.starts_with(char::is_whitespace).then(|| &note[note.len() - rest.len()..])
    });
    cores.extend(further.map(normal::text).filter(|core| !core.is_empty()));
    Accepted { whole, cores }
}

/// A target before its note, and the note.
fn note(target: &str) -> Option<(&str, &str)> {
    let target = target.trim_end();
    let (open, rest) = match target.as_bytes().last()? {
        b')' => ('(', target.strip_suffix(')')?),
        b']' => ('[', target.strip_suffix(']')?),
        _ => return None,
    };
    let (core, note) = rest.rsplit_once(open)?;
    let letters = note.chars().filter(|c| c.is_alphabetic()).count();
    let is_note = core.ends_with(char::is_whitespace) && letters >= NOTE_LETTERS;
    (is_note && core.contains(char::is_alphanumeric)).then(|| (core.trim_end(), note.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes() {
        let check = |target: &str, want: &[&str]| {
            assert_eq!(accepted(target).cores, want, "{target:?}");
        };
        check("Paris", &[]);
        check("(USA)", &[]);
        check("United States (US)", &[]);
        check("Gertrude Bell (film)", &["gertrude bell"]);
        check("William [accept: Duke of Cambridge] ", &["william", "duke of cambridge"]);
        check("Tulip (Orchid)", &["tulip"]);
        check("sum (a) and (b)", &[]);
        check("x (accept )", &["x"]);
    }
}
