package gateway

import (
	"fmt"
	"slices"
	"strings"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware/auth"
	"github.com/proconsul/proconsul/pkg/middleware/ip"
	"github.com/proconsul/proconsul/pkg/problem"
)

func explainOwned(b buildInput, q *asked) Step {
	owned := b.deps.Identity.Owned()
	owned.Strip(q.r.Header)
	return Step{Text: "takes out what only services of auth set: " + strings.Join(owned, ", ")}
}

func explainIP(b buildInput, q *asked) Step {
	cfg := *b.settings.IP
	parts := []string{"from " + q.x.ClientIP.String()}
	if len(cfg.Allow) > 0 {
		parts = append(parts, fmt.Sprintf("%d networks may", len(cfg.Allow)))
	}
	if len(cfg.Deny) > 0 {
		parts = append(parts, fmt.Sprintf("%d may not", len(cfg.Deny)))
	}
	for _, m := range cfg.ByMethod {
		if slices.Contains(config.WithHead(m.Methods), q.r.Method) {
			parts = append(parts, "and "+q.r.Method+" has lists of its own")
		}
	}
	return Step{Text: strings.Join(parts, "; "), Refusal: ip.Peek(cfg, q.r.Method, q.x.ClientIP)}
}

func explainAuth(b buildInput, q *asked) Step {
	cfg := *b.settings.Auth
	parts := append(words("all of ", cfg.AllOf), words("one of ", cfg.AnyOf)...)
	parts = append(parts, needs(cfg.Needs)...)
	for _, m := range cfg.ByMethod {
		if slices.Contains(config.WithHead(m.Methods), q.r.Method) {
			parts = append(parts, "for "+q.r.Method+" "+strings.Join(needs(m.Needs), ", "))
		}
	}
	if cfg.Anonymous {
		parts = append(parts, "or nobody known")
	}
	refusal, asks, err := auth.Peek(cfg, b.deps.Identity.Method, q.r, q.x)
	if asks != "" {
		parts = append(parts, asks+" would ask, and nobody is asked for an explanation")
	}
	if err != nil { // Build has compiled it before
		refusal = problem.From(err)
	}
	if q.x.Consumer != "" {
		parts = append(parts, "the caller is "+q.x.Consumer)
	}
	return Step{Text: strings.Join(parts, "; "), Refusal: refusal}
}

// needs words what is asked of a known caller. Values of claims stay out: they
// may say more of a tenant than who asks should know.
func needs(n config.Needs) []string {
	parts := append(words("consumers ", n.Consumers), words("groups ", n.Groups)...)
	parts = append(append(parts, words("roles ", n.Roles)...), words("scopes ", n.Scopes)...)
	var claims []string
	for _, c := range n.Claims {
		claims = append(claims, c.Name)
	}
	return append(parts, words("claims ", claims)...)
}

func words(what string, names []string) []string {
	if len(names) == 0 {
		return nil
	}
	return []string{what + strings.Join(names, ", ")}
}
