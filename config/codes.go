package config

// Code names a kind of fault. It is stable: docs/errors.md explains it under
// an anchor of its name, and scripts may match on it.
type Code string

// The codes of this package. PC1011 is the one that needs Consul: whoever asks
// it reports with Config.NewFault.
const (
	CodeRead         Code = "PC1001"
	CodeSyntax       Code = "PC1002"
	CodeTooLarge     Code = "PC1003"
	CodeUnknownKey   Code = "PC1004"
	CodeKeyTwice     Code = "PC1005"
	CodeType         Code = "PC1006"
	CodeFormat       Code = "PC1007"
	CodeChoice       Code = "PC1008"
	CodeRange        Code = "PC1009"
	CodeMissing      Code = "PC1010"
	CodeNotInConsul  Code = "PC1011"
	CodeReference    Code = "PC1012"
	CodeNameTwice    Code = "PC1013"
	CodeMatchTwice   Code = "PC1014"
	CodeHost         Code = "PC1015"
	CodePath         Code = "PC1016"
	CodeRegex        Code = "PC1017"
	CodeStrip        Code = "PC1018"
	CodeInterpolate  Code = "PC1019"
	CodeOverlap      Code = "PC1020"
	CodeSectionTwice Code = "PC1021"
	CodeAdminOpen    Code = "PC1022"
	CodeContradicts  Code = "PC1023"
	CodeEnvironment  Code = "PC1024"
	CodeAddress      Code = "PC1025"
	CodeClose        Code = "PC1026"
	CodeNoEffect     Code = "PC1027"
	CodeHeader       Code = "PC1028"
	CodeFailOpen     Code = "PC1029"
	CodeCertificate  Code = "PC1040"
	CodeExpiry       Code = "PC1041"
	CodeKeyOpen      Code = "PC1042"
	CodeDocument     Code = "PC1050"
)

// CodeInfo explains a code to operators.
type CodeInfo struct {
	Code    Code
	Title   string // what it is, in a few words
	Meaning string // why it is a fault
	Fix     string // what to do
}

// Codes returns every code of this package with its explanation, in order.
func Codes() []CodeInfo {
	return []CodeInfo{
		{CodeRead, "cannot be read", "The file or directory does not exist, may not be read, or holds no *.yaml, *.yml or *.json file.", "Check the path and its permissions; the user that runs the gateway must be able to read it."},
		{CodeSyntax, "not YAML or JSON", "The text is not one well-formed YAML or JSON document with a mapping at its top.", "Most often the indentation or a missing quote at or just above the line named."},
		{CodeTooLarge, "too large or too deep", "The configuration passes a bound that protects the gateway: 16 MiB of text, 200,000 values after aliases are expanded, 32 levels.", "Split or shrink it; aliases that multiply are the usual cause."},
		{CodeUnknownKey, "unknown key", "A key that means nothing is never ignored: it is nearly always a typing mistake that would leave a default in place.", "Take the suggestion, or look the key up in docs/config.md. Top-level keys that begin with x- are yours, for anchors."},
		{CodeKeyTwice, "key written twice", "The same key stands twice in one mapping, so one of the two values would be lost.", "Remove one."},
		{CodeType, "wrong type", "A list stands where one value is wanted, text where a number is, and so on.", "Write the type that the message names."},
		{CodeFormat, "not in its format", "Durations have a unit (250ms, 2s, 1m), sizes may have one (64KiB), shares are 20% or 0.2, limits are COUNT/WINDOW (100/1m), networks are CIDR (10.0.0.0/8).", "Write the value as the message shows."},
		{CodeChoice, "not one of the choices", "The key takes one of a few words, and this is none of them.", "Take one that the message lists."},
		{CodeRange, "out of range", "The value is below the least or above the most that makes sense for the key.", "Stay within the range in the message."},
		{CodeMissing, "missing", "A key without which the section means nothing is not written.", "Write it."},
		{CodeNotInConsul, "service not in Consul", "validate --with-consul asked Consul and found no service of that name.", "Check the spelling; a service that is yet to be registered is fine, the route answers 503 no_instances until then."},
		{CodeReference, "reference to nothing", "A route uses a policy, or names an upstream, that the configuration does not have.", "Take the suggestion or add what is missing."},
		{CodeNameTwice, "name taken", "Two elements of a list have the same name, so references to it would be ambiguous. In a directory the two may stand in different files.", "Rename or remove one."},
		{CodeMatchTwice, "routes match the same", "Two routes match exactly the same requests with the same priority; one of them would never be used.", "Remove or narrow one, or give the one that should win a higher priority."},
		{CodeHost, "bad host pattern", "A host is a name (shop.example.com), a wildcard for whole labels in front (*.example.com), an IP address, or empty for any. Ports are not matched.", "Write one of these."},
		{CodePath, "bad path pattern", "A path begins with a slash and is exact (/a), a prefix by whole segments (/a/**), or has template segments (/a/{id}).", "Write one of these."},
		{CodeRegex, "bad regular expression", "The expression is not in Go's RE2 syntax, which has no look-around and no back-references.", "Test it at https://pkg.go.dev/regexp/syntax."},
		{CodeStrip, "strip is not in front of the path", "upstream.strip takes a prefix off the paths that the route matches, by whole segments; this route never matches a path with that prefix.", "Make strip a prefix of match.path."},
		{CodeInterpolate, "reference to the environment or a file", "${env:NAME} needs the variable, ${file:/path} the file; nothing else is replaced. $${ is a literal ${.", "Set the variable, give a default (${env:NAME:-default}), or mount the file."},
		{CodeOverlap, "routes overlap", "Two equally specific routes can match the same request; the one that is written first wins.", "Give the one that should win a priority, or narrow one."},
		{CodeSectionTwice, "section in two files", "In a directory, lists of several files are put together, but a section of single values (consul, redis, admin, ...) belongs to one file.", "Move its keys to one file."},
		{CodeAdminOpen, "admin listener open to others", "The admin listener can drain and reload; on an address other than loopback it needs a token.", "Listen on 127.0.0.1, add admin.tokens, or accept the risk with admin.insecure: true."},
		{CodeContradicts, "keys that contradict each other", "Two keys that exclude each other are both written, or one needs another that is not.", "Decide for one, or write the other."},
		{CodeEnvironment, "unknown environment variable", "A variable begins with PROCONSUL_ but sets nothing.", "Take the suggestion or unset it."},
		{CodeAddress, "bad address", "Addresses are HOST:PORT; IPv6 hosts stand in brackets. A listener may leave out the host.", "Write the address as the message shows."},
		{CodeClose, "name close to another", "A route names a Consul service that no upstream is for, but an upstream has nearly that name. The service gets an upstream of its own, with default settings.", "Take the suggestion if it is a typing mistake; otherwise add the service to upstreams, which silences this."},
		{CodeNoEffect, "setting without effect", "The key is written where it changes nothing.", "Remove it, or write what it needs to work."},
		{CodeHeader, "bad header field or method", "Field names and methods are tokens (letters, digits and -_.!#$%&'*+^`|~), values have no line breaks, and fields that frame a message cannot be set.", "Correct the name or value."},
		{CodeFailOpen, "open where it fails", "The setting lets requests pass unchecked while what would check them does not answer.", "Write closed, unless an outage should open the route."},
		{CodeCertificate, "certificate that cannot be used", "A certificate, key or bundle of issuers cannot be read, is not PEM, or key and certificate do not belong together.", "Check the path, the permissions, and that both files are of the same renewal; openssl x509 -in FILE -noout -text shows a certificate."},
		{CodeExpiry, "certificate expires", "The certificate has expired, is not valid yet, or expires within two weeks.", "Renew it; a renewed file is used at once, without a reload."},
		{CodeKeyOpen, "key that others may read", "Every user of the machine may read the private key.", "chmod o-rwx FILE."},
		{CodeDocument, "bad schema or API description", "A JSON Schema or OpenAPI document that a route validates by cannot be read, or is not one. The line is the document's own.", "Correct the document. It may refer to other files, and to nothing on the network."},
	}
}
