//! Lock files of the project, in the work tree and in every ref of git: what they name is not garbage.
//! Knows nothing of what is in them.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};

use super::{FAILED, Failure};
use crate::store::RootTexts;

/// How every lock file begins, of whatever version.
const FIRST_LINE: &[u8] = b"# Written by `forge apply`.";
/// Folders this deep are searched where there is no git.
const DEPTH_MAX: u32 = 6;

/// The texts of all lock files. What git cannot tell is an error: a root that is overlooked is data lost.
pub(super) fn texts(root: &Utf8Path) -> Result<RootTexts, Failure> {
    let in_git = is_in_git(root)?;
    let paths = if in_git { listed(root)? } else { walked(root) };
    let mut texts = RootTexts::new();
    for path in paths {
        match std::fs::read(root.join(&path)) {
            Ok(text) => texts.push(text),
            // In the index of git, and deleted.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                let message = format!("cannot read `{path}`: {}", crate::stage::plain(&error));
                return Err(Failure::Message(message, FAILED));
            }
        }
    }
    if in_git {
        texts.extend(committed(root)?);
    }
    texts.retain(|text| text.starts_with(FIRST_LINE));
    Ok(texts)
}

/// Whether the project is part of a repository, its root or not.
fn is_in_git(root: &Utf8Path) -> Result<bool, Failure> {
    match git(root, &["rev-parse", "--is-inside-work-tree"]) {
        Ok(answer) => Ok(answer.starts_with(b"true")),
        Err(Failure::Message(message, _)) if message.contains("not a git repository") => Ok(false),
        // Without git there is nothing to ask, and without a repository nothing to ask for.
        Err(_) if !root.ancestors().any(|folder| folder.join(".git").exists()) => Ok(false),
        Err(failure) => Err(failure),
    }
}

fn git(root: &Utf8Path, args: &[&str]) -> Result<Vec<u8>, Failure> {
    let output = Command::new("git")
        .args(["--no-optional-locks", "-C"])
        .arg(root)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::Message(format!("cannot start git: {error}"), FAILED))?;
    if !output.status.success() {
        let talk = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failure::Message(format!("`git {}`: {talk}", args.join(" ")), FAILED));
    }
    Ok(output.stdout)
}

/// Lock files of the work tree, as git sees it.
fn listed(root: &Utf8Path) -> Result<Vec<Utf8PathBuf>, Failure> {
    let list = git(root, &["ls-files", "-z", "--cached", "--others", "--", "*.lock"])?;
    let names = list.split(|c| *c == 0).filter(|name| !name.is_empty());
    Ok(names.filter_map(|name| std::str::from_utf8(name).ok().map(Utf8PathBuf::from)).collect())
}

fn walked(root: &Utf8Path) -> Vec<Utf8PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![(root.to_owned(), 0)];
    while let Some((folder, depth)) = open.pop() {
        for entry in folder.read_dir_utf8().into_iter().flatten().flatten() {
            let hidden = entry.file_name().starts_with('.');
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && !hidden && depth < DEPTH_MAX => {
                    open.push((entry.path().to_owned(), depth + 1));
                }
                Ok(kind) if kind.is_file() && entry.path().extension() == Some("lock") => {
                    found.push(entry.path().to_owned());
                }
                _ => {}
            }
        }
    }
    found
}

/// Lock files in the commits that refs point to: branches, tags, remotes, the stash.
fn committed(root: &Utf8Path) -> Result<RootTexts, Failure> {
    // Of a tag, what it stands for.
    let format = "--format=%(objecttype) %(objectname) %(*objecttype) %(*objectname)";
    let refs = git(root, &["for-each-ref", format])?;
    let mut commits = BTreeSet::new();
    for line in String::from_utf8_lossy(&refs).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let pairs = words.chunks_exact(2).filter(|pair| pair[0] == "commit");
        commits.extend(pairs.map(|pair| pair[1].to_owned()));
    }
    // Detached, it is no ref; before the first commit it is nothing.
    if let Ok(head) = git(root, &["rev-parse", "--verify", "--quiet", "HEAD"]) {
        commits.insert(String::from_utf8_lossy(&head).trim().to_owned());
    }
    let mut blobs = BTreeSet::new();
    for commit in commits {
        let tree = git(root, &["ls-tree", "-r", "-z", "--full-tree", &commit])?;
        for line in tree.split(|c| *c == 0) {
            let line = String::from_utf8_lossy(line);
            let Some((about, path)) = line.split_once('\t') else { continue };
            if path.ends_with(".lock") {
                blobs.extend(about.split(' ').nth(2).map(str::to_owned));
            }
        }
    }
    read_blobs(root, &blobs)
}

fn read_blobs(root: &Utf8Path, blobs: &BTreeSet<String>) -> Result<RootTexts, Failure> {
    if blobs.is_empty() {
        return Ok(RootTexts::new());
    }
    let failed =
        |error: std::io::Error| Failure::Message(format!("`git cat-file`: {error}"), FAILED);
    let mut child = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(["cat-file", "--batch"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let mut stdin = child.stdin.take().expect("BUG: it was piped");
    let names: String = blobs.iter().map(|name| format!("{name}\n")).collect();
    // In a thread: git answers while it is still being asked.
    let asking = std::thread::spawn(move || stdin.write_all(names.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    asking.join().expect("BUG: the thread cannot panic").map_err(failed)?;
    let mut texts = RootTexts::new();
    let mut rest = output.stdout.as_slice();
    while let Some(end) = rest.iter().position(|c| *c == b'\n') {
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        let size = head.rsplit(' ').next().and_then(|size| size.parse::<usize>().ok());
        let Some(size) = size.filter(|size| end + 1 + size < rest.len()) else { break };
        texts.push(rest[end + 1..end + 1 + size].to_vec());
        rest = &rest[end + 1 + size + 1..];
    }
    if texts.len() != blobs.len() {
        let message = "git did not give all lock files; nothing was collected".to_owned();
        return Err(Failure::Message(message, FAILED));
    }
    Ok(texts)
}
