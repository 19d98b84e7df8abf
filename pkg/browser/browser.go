// Package browser holds the status page in a real Chromium, as tests: what an
// operator clicks, types and sees while instances die, configurations are
// refused and the gateway itself goes away; what hostile text can do; and what
// the page costs. The same tests make the pictures of README.md. There is
// nothing here to import.
package browser
