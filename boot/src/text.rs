//! The text of a file that any editor may have written, as a command line.

/// Where in a line the text is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// Nothing but blanks so far.
    Start,
    /// In words.
    Words,
    /// In a remark.
    Remark,
}

/// Gives the words of all lines to `each`, character by character, with a space behind each line. Lines that begin with `#` are remarks.
///
/// The text is UTF-8 with or without a byte order mark, or UTF-16 with one, as Windows' PowerShell and Notepad write it. What is not text
/// becomes replacement characters.
pub fn command_line(file: &[u8], mut each: impl FnMut(char)) {
    let mut at = At::Start;
    let mut take = |character: char| match (at, character) {
        (_, '\n' | '\r') => {
            if at == At::Words {
                each(' ');
            }
            at = At::Start;
        }
        (At::Start, '#') => at = At::Remark,
        (At::Start, blank) if blank.is_whitespace() => {}
        (At::Remark, _) => {}
        (At::Start | At::Words, _) => {
            at = At::Words;
            each(character);
        }
    };
    match file {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes).for_each(&mut take),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes).for_each(&mut take),
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => {
            for chunk in rest.utf8_chunks() {
                chunk.valid().chars().for_each(&mut take);
                if !chunk.invalid().is_empty() {
                    take(char::REPLACEMENT_CHARACTER);
                }
            }
        }
    }
    take('\n');
}

/// The characters of UTF-16. Half a word at the end is left out.
fn utf16(bytes: &[u8], word: fn([u8; 2]) -> u16) -> impl Iterator<Item = char> {
    let (words, _) = bytes.as_chunks::<2>();
    char::decode_utf16(words.iter().map(move |bytes| word(*bytes)))
        .map(|found| found.unwrap_or(char::REPLACEMENT_CHARACTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(file: &[u8]) -> String {
        let mut line = String::new();
        command_line(file, |character| line.push(character));
        line
    }

    #[test]
    fn lines_become_one_and_remarks_go() {
        assert_eq!(
            line(b"# ours\r\n  log=debug\r\n\r\n\tonce exit=halt # no remark\n  #show=/x\nreport"),
            "log=debug once exit=halt # no remark report "
        );
        assert_eq!(line(b""), "");
        assert_eq!(line(b" \n#"), "");
    }

    #[test]
    fn what_windows_writes_is_read() {
        let wide = |mark: [u8; 2], word: fn(u16) -> [u8; 2]| -> Vec<u8> {
            let words = "log=debug\r\nshow=/\u{e4}\u{1f600}\r\n".encode_utf16().flat_map(word);
            mark.into_iter().chain(words).collect()
        };
        let wanted = "log=debug show=/\u{e4}\u{1f600} ";
        assert_eq!(line(&wide([0xff, 0xfe], u16::to_le_bytes)), wanted);
        assert_eq!(line(&wide([0xfe, 0xff], u16::to_be_bytes)), wanted);
        assert_eq!(
            line("\u{feff}log=debug\r\nshow=/\u{e4}\u{1f600}\r\n".as_bytes()),
            wanted
        );
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        assert_eq!(line(b"a\xff\xfeb"), "a\u{fffd}\u{fffd}b ");
        assert_eq!(line(b"\xff\xfe\x00\xd8x\x00y"), "\u{fffd}x ");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(file in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(!line(&file).contains(['\n', '\r']));
        }
    }
}
