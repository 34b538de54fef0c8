//! What the machine's own apt configuration says: [`Source`]s from one-line files and from deb822 files, and which of them is the
//! distribution's main archive.
//!
//! Source: the manual pages sources.list(5) and os-release(5).

use std::path::Path;

/// One archive with its suites.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Where it is.
    pub uri: String,
    /// Its suites, e.g. `bookworm`, `bookworm-updates`.
    pub suites: Vec<String>,
    /// Its components, e.g. `main`.
    pub components: Vec<String>,
    /// The keyring file that signs it, if the configuration names one.
    pub signed_by: Option<String>,
}

/// All archives in apt's configuration folder.
#[must_use]
pub fn read_all(etc_apt: &Path) -> Vec<Source> {
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(folder) = std::fs::read_dir(etc_apt.join("sources.list.d")) {
        let mut more: Vec<_> = folder.filter_map(Result::ok).map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    let mut all = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => all.extend(parse_one_line(&text)),
            Some("sources") => all.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    all
}

/// Understands `deb [options] uri suite component...` lines.
#[must_use]
pub fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(one_line).collect()
}

fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let mut signed_by = None;
    if let Some(inner) = rest.strip_prefix('[') {
        let (options, after) = inner.split_once(']')?;
        for option in options.split_whitespace() {
            if let Some(keyring) = option.strip_prefix("signed-by=") {
                signed_by = Some(keyring.to_owned());
            }
        }
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    let (uri, suite) = (words.next()?, words.next()?);
    Some(Source {
        uri,
        suites: vec![suite],
        components: words.collect(),
        signed_by,
    })
}

/// Understands deb822 paragraphs.
#[must_use]
pub fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut paragraph: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(from_fields(&paragraph));
            paragraph.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = paragraph.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            paragraph.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn from_fields(fields: &[(String, String)]) -> Vec<Source> {
    let words = |wanted: &str| -> Vec<String> {
        let value = fields
            .iter()
            .find(|(name, _)| name == wanted)
            .map_or("", |(_, value)| value);
        value.split_whitespace().map(str::to_owned).collect()
    };
    let enabled = words("enabled");
    if enabled
        .first()
        .is_some_and(|word| matches!(word.as_str(), "no" | "false" | "0"))
        || !words("types").iter().any(|kind| kind == "deb")
    {
        return Vec::new();
    }
    // A key may also stand here in full; then there is no file to name, and apt's own trusted keys have to do.
    let signed_by = words("signed-by")
        .into_iter()
        .next()
        .filter(|word| word.starts_with('/'));
    let one = |uri| Source {
        uri,
        suites: words("suites"),
        components: words("components"),
        signed_by: signed_by.clone(),
    };
    words("uris").into_iter().map(one).collect()
}

/// A distribution that we know how to take packages from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Debian.
    Debian,
    /// Ubuntu.
    Ubuntu,
}

impl Family {
    /// The suites of this distribution that have what we need, oldest first.
    #[must_use]
    pub const fn good_suites(self) -> &'static [&'static str] {
        match self {
            Self::Debian => &["trixie", "forky", "stable"],
            // The emulator of 24.04 is too old for the nested host.
            Self::Ubuntu => &["resolute"],
        }
    }

    /// Suites that are too old.
    const fn old_suites(self) -> &'static [&'static str] {
        match self {
            Self::Debian => &["buster", "bullseye", "bookworm", "oldstable", "oldoldstable"],
            Self::Ubuntu => &["bionic", "focal", "jammy", "noble"],
        }
    }

    /// The keyring that the distribution installs.
    #[must_use]
    pub const fn keyring(self) -> &'static str {
        match self {
            Self::Debian => "/usr/share/keyrings/debian-archive-keyring.gpg",
            Self::Ubuntu => "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
        }
    }
}

/// What `/etc/os-release` says about the distribution: its family and the code name of its suite.
#[must_use]
pub fn parse_os_release(text: &str) -> Option<(Family, String)> {
    let field = |wanted: &str| {
        text.lines()
            .filter_map(|line| line.split_once('='))
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| value.trim_matches(['"', '\'']))
    };
    let kin = format!("{} {}", field("ID").unwrap_or(""), field("ID_LIKE").unwrap_or(""));
    let is = |name: &str| kin.split_whitespace().any(|word| word == name);
    let (family, own) = if is("ubuntu") {
        (Family::Ubuntu, field("UBUNTU_CODENAME"))
    } else if is("debian") {
        (Family::Debian, field("DEBIAN_CODENAME"))
    } else {
        return None;
    };
    Some((
        family,
        own.or_else(|| field("VERSION_CODENAME")).unwrap_or("").to_owned(),
    ))
}

/// The distribution's main archive among `sources`, and the suites to try in it, best first.
#[must_use]
pub fn choose(sources: &[Source], family: Family, codename: &str) -> Option<(Source, Vec<String>)> {
    let known = |suite: &String| {
        let suite = suite.as_str();
        let plain = ["sid", "unstable", "testing"].contains(&suite) && family == Family::Debian;
        suite == codename || plain || family.good_suites().contains(&suite) || family.old_suites().contains(&suite)
    };
    let source = sources.iter().find(|source| {
        source.components.iter().any(|component| component == "main") && source.suites.iter().any(known)
    })?;
    let own = source.suites.iter().find(|suite| known(suite))?;
    let mut suites = Vec::new();
    if !family.old_suites().contains(&own.as_str()) {
        suites.push(own.clone());
    }
    let good = family.good_suites();
    // Newer than the own one only: an older one may not be in the archive any more, and would be no better.
    let from = good.iter().position(|suite| suite == own).map_or(0, |index| index + 1);
    suites.extend(good.iter().skip(from).map(|&suite| suite.to_owned()));
    Some((source.clone(), suites))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn debian_12_as_in_its_container() {
        let text = "Types: deb\n# http://snapshot.example/x\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\nTypes: deb\n\
                    URIs: http://mirror.example/debian-security\nSuites: bookworm-security\nComponents: main\n";
        let sources = parse_deb822(text);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].suites, strings(&["bookworm", "bookworm-updates"]));
        assert_eq!(
            sources[0].signed_by.as_deref(),
            Some("/usr/share/keyrings/debian-archive-keyring.gpg")
        );
        let (source, suites) = choose(&sources, Family::Debian, "bookworm").unwrap();
        assert_eq!(source.uri, "http://mirror.example/debian");
        assert_eq!(suites, strings(&["trixie", "forky", "stable"]));
    }

    #[test]
    fn ubuntu_one_line_with_strangers() {
        let text = "# comment\ndeb [arch=amd64 signed-by=/usr/share/keyrings/docker.gpg] https://docker.example/linux noble stable\n\
                    deb-src http://mirror.example/ubuntu noble main\n\
                    deb http://mirror.example/ubuntu noble-updates main restricted\n\
                    deb\thttp://mirror.example/ubuntu noble main restricted # own\n";
        let sources = parse_one_line(text);
        assert_eq!(sources.len(), 3);
        assert_eq!(sources[0].signed_by.as_deref(), Some("/usr/share/keyrings/docker.gpg"));
        let (source, suites) = choose(&sources, Family::Ubuntu, "noble").unwrap();
        assert_eq!(
            (source.uri.as_str(), source.suites.as_slice()),
            ("http://mirror.example/ubuntu", strings(&["noble"]).as_slice())
        );
        assert_eq!(source.components, strings(&["main", "restricted"]));
        assert_eq!(suites, strings(&["resolute"]));
    }

    #[test]
    fn too_old_ubuntu_takes_a_newer_suite_and_newer_takes_its_own() {
        let source = |suite: &str| {
            vec![Source {
                uri: "u".into(),
                suites: strings(&[suite]),
                components: strings(&["main"]),
                signed_by: None,
            }]
        };
        let suites = |suite: &str| choose(&source(suite), Family::Ubuntu, suite).unwrap().1;
        assert_eq!(suites("jammy"), strings(&["resolute"]));
        assert_eq!(suites("zesty-zebra")[0], "zesty-zebra");
        assert_eq!(choose(&source("sid"), Family::Debian, "forky").unwrap().1[0], "sid");
        assert_eq!(choose(&source("nodistro"), Family::Debian, "bookworm"), None);
    }

    #[test]
    fn deb822_details() {
        let text = "types: deb deb-src\nuris: http://a.example/ http://b.example/\nsuites:\n trixie\n trixie-updates\ncomponents: main contrib\n\
                    signed-by:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n\nEnabled: no\nTypes: deb\nURIs: http://c.example\nSuites: x\n\
                    \nTypes: deb-src\nURIs: http://d.example\nSuites: trixie\n";
        let sources = parse_deb822(text);
        assert_eq!(
            sources.iter().map(|source| source.uri.as_str()).collect::<Vec<_>>(),
            ["http://a.example/", "http://b.example/"]
        );
        assert_eq!(sources[0].suites, strings(&["trixie", "trixie-updates"]));
        assert_eq!(sources[0].signed_by, None);
    }

    #[test]
    fn distributions() {
        let parse = parse_os_release;
        assert_eq!(
            parse("ID=debian\nVERSION_CODENAME=bookworm\n"),
            Some((Family::Debian, "bookworm".into()))
        );
        assert_eq!(
            parse("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\nUBUNTU_CODENAME=noble\n"),
            Some((Family::Ubuntu, "noble".into()))
        );
        let mint = "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_CODENAME=wilma\nUBUNTU_CODENAME=noble\n";
        assert_eq!(parse(mint), Some((Family::Ubuntu, "noble".into())));
        assert_eq!(parse("ID=fedora\n"), None);
    }

    #[test]
    fn a_folder_of_sources() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sources.list.d")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("sources.list", "deb http://a.example/ trixie main\n");
        write(
            "sources.list.d/b.sources",
            "Types: deb\nURIs: http://b.example/\nSuites: trixie\nComponents: main\n",
        );
        write("sources.list.d/c.list.save", "deb http://c.example/ trixie main\n");
        let uris: Vec<String> = read_all(folder.path()).into_iter().map(|source| source.uri).collect();
        assert_eq!(uris, ["http://a.example/", "http://b.example/"]);
    }
}
