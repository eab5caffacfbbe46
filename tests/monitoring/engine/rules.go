package main

import (
	"context"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/common/promslog"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/parser/posrange"
	"github.com/prometheus/prometheus/rules"
	"go.yaml.in/yaml/v3"

	"github.com/grafana/loki/v3/pkg/logproto"
	"github.com/grafana/loki/v3/pkg/logql"
	"github.com/grafana/loki/v3/pkg/logql/syntax"
)

// watch runs alert rules as the ruler does, with Prometheus' own code for `for` and templates, and
// returns every alert at every time that it fires.
func watch(engine *logql.QueryEngine, asked question) ([]alert, map[string]string, error) {
	var groups rulefmt.RuleGroups
	decoder := yaml.NewDecoder(strings.NewReader(asked.Rules))
	decoder.KnownFields(true)
	if err := decoder.Decode(&groups); err != nil {
		return nil, nil, err
	}
	fired := []alert{}
	faults := map[string]string{}
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			found, err := watchOne(engine, rule, asked)
			if err != nil {
				faults[rule.Alert] = err.Error()
			}
			fired = append(fired, found...)
		}
	}
	return fired, faults, nil
}

func watchOne(engine *logql.QueryEngine, rule rulefmt.Rule, asked question) ([]alert, error) {
	expr, err := syntax.ParseExpr(rule.Expr)
	if err != nil {
		return nil, err
	}
	watched := rules.NewAlertingRule(
		rule.Alert, adapter{expr}, time.Duration(rule.For), time.Duration(rule.KeepFiringFor),
		labels.FromMap(rule.Labels), labels.FromMap(rule.Annotations), labels.EmptyLabels(), "", true,
		promslog.NewNopLogger(),
	)
	ask := func(ctx context.Context, text string, at time.Time) (promql.Vector, error) {
		params, err := logql.NewLiteralParams(
			text, at, at, 0, 0, logproto.FORWARD, 0, nil, nil)
		if err != nil {
			return nil, err
		}
		found, err := engine.Query(params).Exec(ctx)
		if err != nil {
			return nil, err
		}
		return found.Data.(promql.Vector), nil
	}
	var fired []alert
	for at := asked.Start; at <= asked.End; at += asked.Interval {
		if _, err := watched.Eval(tenant(), 0, time.Unix(0, at), ask, &url.URL{}, 0); err != nil {
			return fired, err
		}
		for _, active := range watched.ActiveAlerts() {
			if active.State == rules.StateFiring {
				fired = append(fired, alert{
					rule.Alert, at, active.Labels.Map(), active.Annotations.Map()})
			}
		}
	}
	return fired, nil
}

// adapter lets Prometheus' rules hold a LogQL expression, as Loki's ruler does it.
type adapter struct{ syntax.Expr }

func (adapter) PositionRange() posrange.PositionRange { return posrange.PositionRange{} }
func (adapter) PromQLExpr()                           {}
func (adapter) Type() parser.ValueType                { return parser.ValueType("LogQL") }
func (adapter) Pretty(int) string                     { return "" }
