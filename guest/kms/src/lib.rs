//! Key management services as sealed secrets and image keys use them: Alibaba Cloud and AWS.

#![forbid(unsafe_code)]
