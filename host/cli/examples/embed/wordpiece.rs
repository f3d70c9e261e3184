//! BERT's tokenizer: normalisation, words, then WordPiece (Devlin et al., 2019, and its published code).

use std::collections::HashMap;
use std::path::Path;

use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

/// Longest word that is cut into pieces; a longer one is unknown.
const MAX_WORD: usize = 100;

/// The uncased tokenizer of a vocabulary.
pub struct WordPiece {
    /// Pieces and their numbers; those that continue a word begin with `##`.
    vocabulary: HashMap<String, u32>,
    unknown: u32,
    start: u32,
    end: u32,
}

impl WordPiece {
    /// Reads `vocab.txt`, a piece a line.
    pub fn load(path: &Path) -> Result<WordPiece, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        WordPiece::new(text.lines()).map_err(|missing| format!("{}: there is no piece {missing}", path.display()))
    }

    fn new<'a>(pieces: impl Iterator<Item = &'a str>) -> Result<WordPiece, &'static str> {
        let vocabulary: HashMap<String, u32> = pieces.map(str::to_owned).zip(0..).collect();
        let special = |piece| vocabulary.get(piece).copied().ok_or(piece);
        let (unknown, start, end) = (special("[UNK]")?, special("[CLS]")?, special("[SEP]")?);
        Ok(WordPiece { vocabulary, unknown, start, end })
    }

    /// How many pieces there are.
    pub fn len(&self) -> usize {
        self.vocabulary.len()
    }

    /// The pieces of `text` between the start and the end piece, at most `limit` in all.
    pub fn encode(&self, text: &str, limit: usize) -> Vec<u32> {
        let mut pieces = vec![self.start];
        for word in words(&normalise(text)) {
            self.cut(word, &mut pieces);
        }
        pieces.truncate(limit.saturating_sub(1));
        pieces.push(self.end);
        pieces
    }

    /// Takes the longest piece that fits, then goes on behind it.
    fn cut(&self, word: &str, pieces: &mut Vec<u32>) {
        let before = pieces.len();
        let mut rest = if word.chars().count() > MAX_WORD { None } else { Some(word) };
        while let Some(left) = rest.filter(|left| !left.is_empty()) {
            let prefix = if pieces.len() == before { "" } else { "##" };
            let ends = left.char_indices().map(|(at, char)| at + char.len_utf8());
            let found = ends.rev().find_map(|end| {
                let piece = self.vocabulary.get(&format!("{prefix}{}", &left[..end]))?;
                Some((*piece, end))
            });
            rest = found.map(|(piece, end)| {
                pieces.push(piece);
                &left[end..]
            });
        }
        if rest.is_none() {
            pieces.truncate(before);
            pieces.push(self.unknown);
        }
    }
}

/// Without control characters and accents, in lower case, ideographs as words of their own.
fn normalise(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            char if char.is_whitespace() => clean.push(' '),
            '\0' | '\u{FFFD}' => {}
            char if char.general_category_group() == GeneralCategoryGroup::Other => {}
            char if is_ideograph(char) => clean.extend([' ', char, ' ']),
            char => clean.push(char),
        }
    }
    let unaccented = clean.nfd().filter(|char| char.general_category() != GeneralCategory::NonspacingMark);
    unaccented.flat_map(char::to_lowercase).collect()
}

/// What lies between spaces, punctuation by itself.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for mut rest in text.split_whitespace() {
        while let Some((at, mark)) = rest.char_indices().find(|&(_, char)| is_punctuation(char)) {
            let (word, behind) = rest.split_at(at);
            let (mark, behind) = behind.split_at(mark.len_utf8());
            words.extend([word, mark].into_iter().filter(|word| !word.is_empty()));
            rest = behind;
        }
        words.extend(Some(rest).filter(|rest| !rest.is_empty()));
    }
    words
}

fn is_punctuation(char: char) -> bool {
    char.is_ascii_punctuation() || char.general_category_group() == GeneralCategoryGroup::Punctuation
}

/// The blocks that BERT's code calls Chinese.
fn is_ideograph(char: char) -> bool {
    matches!(u32::from(char),
        0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0x2A700..=0x2B73F | 0x2B740..=0x2B81F
        | 0x2B820..=0x2CEAF | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wordpiece() -> WordPiece {
        WordPiece::new("[UNK] [CLS] [SEP] cafe un ##aff ##able , ! 中 a".split(' ')).unwrap()
    }

    #[test]
    fn words_are_cut_into_the_longest_pieces() {
        assert_eq!(wordpiece().encode("Unaffable, café!", 64), [1, 4, 5, 6, 7, 3, 8, 2]);
    }

    #[test]
    fn a_word_that_does_not_come_out_is_unknown_as_a_whole() {
        assert_eq!(wordpiece().encode("unaffab a", 64), [1, 0, 10, 2]);
        assert_eq!(wordpiece().encode(&"a".repeat(101), 64), [1, 0, 2]);
    }

    #[test]
    fn controls_vanish_and_ideographs_stand_alone() {
        assert_eq!(wordpiece().encode("a\u{0}\u{200B}\t中a", 64), [1, 10, 9, 10, 2]);
        assert_eq!(wordpiece().encode("", 64), [1, 2]);
    }

    #[test]
    fn the_limit_includes_both_ends() {
        assert_eq!(wordpiece().encode("a a a a a", 4), [1, 10, 10, 2]);
    }

    #[test]
    fn special_pieces_must_be_there() {
        assert_eq!(WordPiece::new(["[UNK]", "[CLS]"].into_iter()).err(), Some("[SEP]"));
    }
}
