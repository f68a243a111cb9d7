//! A Rust source file as its words: what is code, what is a literal, what belongs to tests.
//! Comments and documentation are not in it, so a rule never takes a mention for a use.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Group, LineColumn, Spacing, TokenStream, TokenTree};

/// One file below the root of the repository.
pub struct Source {
    /// From the root of the repository, such as `src/db/tokens.rs`.
    pub path: String,
    pub text: String,
    pub tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    /// A word, a mark such as `::`, or what stands between the quotes of a string literal.
    pub text: String,
    pub line: usize,
    /// Whether only `cfg(test)` builds compile it.
    pub in_test: bool,
    /// How many `mod name { … }` of this file are around it.
    inline_modules: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Word,
    Mark,
    Text,
    Open,
    Close,
}

/// A path that begins at the root of the crate, such as `crate::nix::hash::NarHash`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CratePath {
    /// Without `crate`; a glob ends in `*`.
    pub segments: Vec<String>,
    pub line: usize,
    pub in_test: bool,
}

impl Source {
    pub fn parse(path: &str, text: &str) -> Self {
        let stream: TokenStream =
            text.parse().unwrap_or_else(|error| panic!("{path} cannot be read as Rust: {error}"));
        let mut flat = Flat::default();
        flat.stream(stream, is_test_file(path), 0);
        Self { path: path.to_owned(), text: text.to_owned(), tokens: flat.tokens }
    }

    /// Every Rust file below `folder`, sorted by path.
    pub fn read_all(folder: &str) -> Vec<Self> {
        let mut paths = Vec::new();
        collect(&root().join(folder), &mut paths);
        paths.sort();
        let of = |path: &PathBuf| {
            let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let name = path.strip_prefix(root()).expect("collected below the root");
            Self::parse(&name.to_string_lossy(), &text)
        };
        let mut sources: Vec<Self> = paths.iter().map(of).collect();
        let test_files: BTreeSet<String> = sources.iter().flat_map(Self::test_files).collect();
        for source in sources.iter_mut().filter(|source| test_files.contains(&source.path)) {
            source.tokens.iter_mut().for_each(|token| token.in_test = true);
        }
        sources
    }

    /// Files of the modules that this one declares for tests only: `#[cfg(test)] mod name;`.
    pub fn test_files(&self) -> Vec<String> {
        let folder = match self.path.rsplit_once('/') {
            Some((folder, "mod.rs" | "lib.rs" | "main.rs")) => folder.to_owned(),
            _ => self.path.trim_end_matches(".rs").to_owned(),
        };
        let declares = |words: &&[Token]| {
            words[0].is_word("mod") && words[1].kind == Kind::Word && words[2].text == ";" && words[1].in_test
        };
        self.tokens
            .windows(3)
            .filter(declares)
            .map(|words| format!("{folder}/{}.rs", words[1].text))
            .collect()
    }

    /// The layer that the file belongs to: its folder or file directly below `src/`.
    pub fn layer(&self) -> &str {
        self.modules().first().copied().unwrap_or("lib")
    }

    /// The modules that the file stands for: `src/db/mod.rs` is `db`, `src/db/log.rs` is `db`, `log`.
    fn modules(&self) -> Vec<&str> {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let inner = inner.strip_suffix(".rs").unwrap_or(inner);
        inner.split('/').filter(|name| !matches!(*name, "mod" | "lib")).collect()
    }

    /// Every path from the root of the crate: by `crate::`, also in groups and macros, or by enough `super::`.
    pub fn crate_paths(&self) -> Vec<CratePath> {
        let mut paths = Vec::new();
        let mut at = 0;
        while at < self.tokens.len() {
            let token = &self.tokens[at];
            let after_root = if token.is_word("crate") { Some(at + 1) } else { self.after_supers(at) };
            match after_root {
                Some(next) if self.is_mark(next, "::") => self.tails(next + 1, &[], &mut paths),
                _ => {}
            }
            at = self.end_of_supers(at).max(at + 1);
        }
        paths
    }

    /// Where a chain of `super::super` that starts here and reaches the root of the crate ends.
    fn after_supers(&self, start: usize) -> Option<usize> {
        let end = self.end_of_supers(start);
        let count = (end - start).div_ceil(2);
        let depth = self.modules().len() + self.tokens[start].inline_modules;
        (count > 0 && count >= depth).then_some(end)
    }

    /// The token after the last `super` of a chain; `start` itself where there is none.
    fn end_of_supers(&self, start: usize) -> usize {
        let mut end = start;
        while self.tokens.get(end).is_some_and(|token| token.is_word("super")) {
            end += 1;
            if self.is_mark(end, "::") && self.tokens.get(end + 1).is_some_and(|token| token.is_word("super"))
            {
                end += 1;
            }
        }
        end
    }

    /// The paths that go on from `at`, which is behind a `::`.
    fn tails(&self, at: usize, before: &[String], paths: &mut Vec<CratePath>) {
        let Some(token) = self.tokens.get(at) else { return };
        let path = |segments: Vec<String>| CratePath { segments, line: token.line, in_test: token.in_test };
        match token.kind {
            Kind::Open if token.text == "{" => {
                let mut element = at + 1;
                while element < self.tokens.len() && self.tokens[element].kind != Kind::Close {
                    self.tails(element, before, paths);
                    element = self.next_element(element);
                }
            }
            Kind::Word if token.text == "self" => paths.push(path(before.to_vec())),
            Kind::Word => {
                let mut segments = before.to_vec();
                segments.push(token.text.clone());
                if self.is_mark(at + 1, "::") && !self.is_mark(at + 2, "<") {
                    self.tails(at + 2, &segments, paths);
                } else {
                    paths.push(path(segments));
                }
            }
            _ => {
                let mut segments = before.to_vec();
                segments.push(token.text.clone());
                paths.push(path(segments));
            }
        }
    }

    /// Behind the next comma of the same group, or at the end of the group.
    fn next_element(&self, mut at: usize) -> usize {
        let mut depth = 0usize;
        while let Some(token) = self.tokens.get(at) {
            match token.kind {
                Kind::Open => depth += 1,
                Kind::Close if depth == 0 => return at,
                Kind::Close => depth -= 1,
                Kind::Mark if depth == 0 && token.text == "," => return at + 1,
                _ => {}
            }
            at += 1;
        }
        at
    }

    pub fn is_mark(&self, at: usize, text: &str) -> bool {
        self.tokens.get(at).is_some_and(|token| token.kind == Kind::Mark && token.text == text)
    }

    /// Tokens that start an attribute, as the words inside the brackets and the line.
    pub fn attributes(&self) -> Vec<(usize, &[Token])> {
        let starts = (0..self.tokens.len()).filter(|&at| self.is_mark(at, "#"));
        let attribute = |at: usize| {
            let open = if self.is_mark(at + 1, "!") { at + 2 } else { at + 1 };
            let is_open = self.tokens.get(open).is_some_and(|token| token.text == "[");
            is_open.then(|| (self.tokens[at].line, &self.tokens[open + 1..self.end_of_group(open)]))
        };
        starts.filter_map(attribute).collect()
    }

    fn end_of_group(&self, open: usize) -> usize {
        let mut depth = 0usize;
        for (at, token) in self.tokens.iter().enumerate().skip(open) {
            match token.kind {
                Kind::Open => depth += 1,
                Kind::Close if depth == 1 => return at,
                Kind::Close => depth -= 1,
                _ => {}
            }
        }
        self.tokens.len()
    }
}

impl Token {
    pub fn is_word(&self, text: &str) -> bool {
        self.kind == Kind::Word && self.text == text
    }
}

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/") || path.ends_with("/tests.rs") || path.contains("/tests/")
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap_or_else(|error| panic!("{}: {error}", folder.display())).path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

#[derive(Default)]
struct Flat {
    tokens: Vec<Token>,
}

impl Flat {
    fn stream(&mut self, stream: TokenStream, mut in_test: bool, inline_modules: usize) {
        let trees: Vec<TokenTree> = stream.into_iter().collect();
        // Set by `#[cfg(test)]` until the end of the item that it stands on.
        let mut item_in_test = false;
        let mut at = 0;
        while at < trees.len() {
            if let Some((attribute, inner, next)) = attribute(&trees, at) {
                let first = attribute.stream().into_iter().next().map(|tree| tree.to_string());
                let is_test = attribute.to_string().replace(' ', "") == "[cfg(test)]";
                in_test |= is_test && inner;
                item_in_test |= is_test && !inner;
                if first.as_deref() != Some("doc") {
                    self.trees(&trees[at..next], in_test || item_in_test, inline_modules);
                }
                at = next;
                continue;
            }
            let test = in_test || item_in_test;
            match &trees[at] {
                TokenTree::Group(group) => {
                    let modules = inline_modules + usize::from(is_inline_module(&trees, at));
                    self.group(group, test, modules);
                    item_in_test &= group.delimiter() != Delimiter::Brace;
                }
                TokenTree::Punct(mark) if mark.as_char() == ';' => {
                    self.push(Kind::Mark, ";", mark.span().start(), test, inline_modules);
                    item_in_test = false;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' && mark.spacing() == Spacing::Joint => {
                    self.push(Kind::Mark, "::", mark.span().start(), test, inline_modules);
                    at += 1;
                }
                tree => self.trees(std::slice::from_ref(tree), test, inline_modules),
            }
            at += 1;
        }
    }

    fn trees(&mut self, trees: &[TokenTree], in_test: bool, inline_modules: usize) {
        for tree in trees {
            let start = tree.span().start();
            match tree {
                TokenTree::Group(group) => self.group(group, in_test, inline_modules),
                TokenTree::Ident(word) => {
                    self.push(Kind::Word, &word.to_string(), start, in_test, inline_modules);
                }
                TokenTree::Punct(mark) => {
                    self.push(Kind::Mark, &mark.as_char().to_string(), start, in_test, inline_modules);
                }
                TokenTree::Literal(literal) => {
                    let literal = literal.to_string();
                    let (kind, text) = match (literal.find('"'), literal.rfind('"')) {
                        (Some(first), Some(last)) if first < last => (Kind::Text, &literal[first + 1..last]),
                        _ => (Kind::Word, literal.as_str()),
                    };
                    self.push(kind, text, start, in_test, inline_modules);
                }
            }
        }
    }

    fn group(&mut self, group: &Group, in_test: bool, inline_modules: usize) {
        let (open, close) = match group.delimiter() {
            Delimiter::Brace => ("{", "}"),
            Delimiter::Bracket => ("[", "]"),
            Delimiter::Parenthesis => ("(", ")"),
            Delimiter::None => ("", ""),
        };
        self.push(Kind::Open, open, group.span_open().start(), in_test, inline_modules);
        self.stream(group.stream(), in_test, inline_modules);
        self.push(Kind::Close, close, group.span_close().start(), in_test, inline_modules);
    }

    fn push(&mut self, kind: Kind, text: &str, start: LineColumn, in_test: bool, inline_modules: usize) {
        self.tokens.push(Token { kind, text: text.to_owned(), line: start.line, in_test, inline_modules });
    }
}

/// An attribute that starts at `at`: its brackets, whether it is an inner one, and where it ends.
fn attribute(trees: &[TokenTree], at: usize) -> Option<(&Group, bool, usize)> {
    let is = |at: usize, mark: char| matches!(trees.get(at), Some(TokenTree::Punct(found)) if found.as_char() == mark);
    let inner = is(at + 1, '!');
    let brackets = if inner { at + 2 } else { at + 1 };
    match trees.get(brackets) {
        Some(TokenTree::Group(group)) if is(at, '#') && group.delimiter() == Delimiter::Bracket => {
            Some((group, inner, brackets + 1))
        }
        _ => None,
    }
}

/// Whether the group at `at` is the body of `mod name { … }`.
fn is_inline_module(trees: &[TokenTree], at: usize) -> bool {
    let is_word = |at: usize| matches!(trees.get(at), Some(TokenTree::Ident(_)));
    at >= 2 && is_word(at - 1) && matches!(&trees[at - 2], TokenTree::Ident(word) if word == "mod")
}
