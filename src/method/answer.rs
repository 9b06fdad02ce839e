//! Finding the answer in a reply. Knows nothing of targets: what is right is the scorers' business.

/// Layers of decoration taken off an answer: a reply of a million asterisks is no reason to spend a minute.
const DECORATIONS_MAX: u32 = 8;

/// The whole reply as an answer: a stated answer (`The answer is …`) where there is one, else all of it,
/// without decoration.
pub fn whole(reply: &str) -> String {
    match stated(reply) {
        Some((_, answer)) => answer,
        None => undecorated(reply),
    }
}

/// The last stated answer with the text before it: what follows the last `Answer:` that anything follows,
/// or where there is none the last `the answer is`. It ends with its line; a line that ends right after the mark goes on below.
pub fn stated(reply: &str) -> Option<(String, String)> {
    // "The answer isn't …" states none.
    let is_whole = |end: usize| {
        !reply[end..].starts_with(|c: char| c.is_alphanumeric() || c == '\'' || c == '’')
    };
    let spoken = places(reply, "answer is").filter(|(_, end)| is_whole(*end));
    places(reply, "answer:").chain(spoken).find_map(|(at, end)| {
        let rest = reply[end..].trim_start_matches([':', '*', '_', ' ', '\t']);
        let answer = undecorated(rest.trim_start().lines().next().unwrap_or(""));
        (!answer.is_empty()).then(|| (reply[..at].trim().to_owned(), answer))
    })
}

/// Where a mark of ASCII letters begins and ends, in whatever case, the last first.
fn places(text: &str, mark: &'static str) -> impl Iterator<Item = (usize, usize)> {
    let (bytes, length) = (text.as_bytes(), mark.len());
    let first = mark.as_bytes()[0];
    let found = memchr::memrchr2_iter(first, first.to_ascii_uppercase(), bytes);
    let found = found.map(move |at| (at, at + length));
    found.filter(move |(at, end)| {
        bytes.get(*at..*end).is_some_and(|found| found.eq_ignore_ascii_case(mark.as_bytes()))
    })
}

/// Without surrounding quotes, Markdown emphasis and a sentence's full stop; the point of an
/// abbreviation ("D.C.") stays.
pub fn undecorated(text: &str) -> String {
    let mut text = text.trim();
    for _ in 0..DECORATIONS_MAX {
        let before = text;
        text = text.trim();
        for mark in ["**", "__", "*", "_", "`", "\"", "'", "“", "”"] {
            if let Some(rest) = text.strip_prefix(mark) {
                // A mark on one side only is decoration too: "**Answer:** `42`" is cut in the middle.
                text = rest.strip_suffix(mark).unwrap_or(rest);
            } else if let Some(rest) = text.strip_suffix(mark)
                && rest.matches(mark).count() % 2 == 0
            {
                text = rest;
            }
        }
        if let Some(rest) = text.strip_suffix('.')
            && !ends_in_abbreviation(rest)
        {
            text = rest;
        }
        if text == before {
            break;
        }
    }
    text.to_owned()
}

/// Whether the last word is a lone letter or has a point inside, as in "D.C" or "J. K".
fn ends_in_abbreviation(text: &str) -> bool {
    let word = text.rsplit(char::is_whitespace).next().unwrap_or("");
    let letters = word.chars().filter(|c| c.is_alphabetic()).count();
    letters > 0 && word.split('.').all(|part| part.chars().count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_replies() {
        let check = |reply: &str, want: &str| assert_eq!(whole(reply), want, "{reply:?}");
        check("  Paris.\n", "Paris");
        check("$0.05", "$0.05");
        check("3.14", "3.14");
        check("2,161,000", "2,161,000");
        check("J. K. Rowling", "J. K. Rowling");
        check("Washington, D.C.", "Washington, D.C.");
        check("The answer is **Canberra**.", "Canberra");
        check("\"Hamlet\"", "Hamlet");
        check("Little Women", "Little Women");
        check("The answer is 4. No, the answer is 5.", "5");
        check("", "");
        check("**", "");
    }
}
