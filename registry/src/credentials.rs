//! Who we are: given with the options, or asked for when a registry wants to know.

use std::fmt;
use std::sync::Arc;

use types::{Error, Result};

/// A user and a password; with an empty user the password is a refresh token.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub user: String,
    /// Password or refresh token.
    pub secret: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// A registry that wants to know who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The host that asks, with its port unless it is the scheme's own. A mirror asks by its own name.
    pub host: String,
    /// What is pulled or pushed.
    pub reference: String,
    /// Its `WWW-Authenticate` headers.
    pub challenges: Vec<String>,
}

/// The answer to a [`Question`]. It is used for the origin that asked and the token server that this
/// origin named, for nobody else.
#[derive(Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nobody in particular.
    Anonymous,
    /// This user.
    User(Credentials),
    /// Whoever this refresh token (an identity token) is for.
    Refresh(String),
    /// A ready value of the `Authorization` header.
    Header(String),
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::User(_) => "User(..)",
            Self::Refresh(_) => "Refresh(..)",
            Self::Header(_) => "Header(..)",
        })
    }
}

/// Knows credentials.
#[async_trait::async_trait]
pub trait Authenticator: fmt::Debug + Send + Sync {
    /// Called when a host refuses a request without credentials, and again when what they bought has
    /// run out. It may take as long as [`crate::Limits::credentials`] says, and is given up then.
    ///
    /// # Errors
    /// End the request as they are; use [`Answer::Anonymous`] when there is merely nothing to say.
    async fn answer(&self, question: &Question) -> Result<Answer>;
}

/// Where a host's credentials come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    None,
    Fixed(Credentials),
    Ask(Arc<dyn Authenticator>),
}

impl Source {
    pub(crate) async fn answer(&self, question: &Question) -> Result<Answer> {
        match self {
            Self::None => Ok(Answer::Anonymous),
            Self::Fixed(credentials) if credentials.user.is_empty() => {
                Ok(Answer::Refresh(credentials.secret.clone()))
            }
            Self::Fixed(credentials) => Ok(Answer::User(credentials.clone())),
            Self::Ask(authenticator) => match authenticator.answer(question).await? {
                Answer::User(Credentials { user, .. }) if user.contains(':') => {
                    Err(Error::invalid_argument("user name with a colon"))
                }
                Answer::User(c) if c.user.is_empty() && c.secret.is_empty() => {
                    Ok(Answer::Anonymous)
                }
                Answer::User(c) if c.user.is_empty() => Ok(Answer::Refresh(c.secret)),
                answer => Ok(answer),
            },
        }
    }
}
