//! Listings in pages.

use futures::stream::{self, BoxStream, StreamExt};

use crate::error::{Error, ErrorKind, Result};

/// Where a listing goes on.
enum Position {
    Start,
    Token(String),
    End,
}

/// The pages of a listing, one request each. `fetch` gets the token of a page, none for the first, and yields the page
/// with the token of the next one; none ends the listing, an empty one says that the service gave none.
///
/// `op` and `target` are for the error of a service that does not get on: half a listing must never look like a whole
/// one.
pub(crate) fn pages<'a, P, F>(
    op: &'static str,
    target: String,
    fetch: impl Fn(Option<String>) -> F + Send + 'a,
) -> BoxStream<'a, Result<P>>
where
    P: Send + 'a,
    F: Future<Output = Result<(P, Option<String>)>> + Send + 'a,
{
    stream::try_unfold(Position::Start, move |position| {
        let token = match position {
            Position::Start => Some(None),
            Position::Token(token) => Some(Some(token)),
            Position::End => None,
        };
        let asked = token.map(|token| (token.clone(), fetch(token)));
        let target = target.clone();
        async move {
            let Some((token, asked)) = asked else { return Ok(None) };
            let (page, next) = asked.await?;
            let next = match next {
                None => Position::End,
                Some(next) if next.is_empty() || Some(&next) == token.as_ref() => {
                    let text = "the service says there is more, but not where to go on";
                    return Err(Error::new(ErrorKind::Unavailable, op).at(target).caused_by(text));
                }
                Some(next) => Position::Token(next),
            };
            Ok(Some((page, next)))
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use futures::stream::TryStreamExt;

    use super::*;

    async fn listed(tokens: [Option<&str>; 3]) -> Result<Vec<usize>> {
        let fetch = |token: Option<String>| {
            let page = token.map_or(0, |token| token.len());
            let next = tokens[page].map(str::to_owned);
            async move { Ok((page, next)) }
        };
        pages("list", "here".to_owned(), fetch).try_collect().await
    }

    #[tokio::test]
    async fn pages_follow_one_another_until_there_is_no_token() {
        assert_eq!(listed([Some("1"), Some("22"), None]).await.unwrap(), [0, 1, 2]);
        assert_eq!(listed([None, None, None]).await.unwrap(), [0]);
    }

    #[tokio::test]
    async fn a_listing_that_does_not_get_on_is_an_error() {
        for tokens in [[Some("1"), Some("1"), None], [Some(""), None, None]] {
            assert_eq!(listed(tokens).await.unwrap_err().kind(), ErrorKind::Unavailable);
        }
    }
}
