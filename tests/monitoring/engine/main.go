// Loki's and Promtail's own code, as a program that tests can ask: one JSON question on standard
// input, one JSON answer on standard output.  What a question may hold: `question` below.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/go-kit/log"
	"github.com/grafana/dskit/user"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql"
	"gopkg.in/yaml.v2"

	"github.com/grafana/loki/v3/clients/pkg/logentry/stages"
	"github.com/grafana/loki/v3/clients/pkg/promtail/api"
	"github.com/grafana/loki/v3/pkg/logproto"
	"github.com/grafana/loki/v3/pkg/logql"
	"github.com/grafana/loki/v3/pkg/logql/syntax"
	"github.com/grafana/loki/v3/pkg/logqlmodel"
	"github.com/grafana/loki/v3/pkg/util/validation"
)

// entry is a line with what Loki stores beside it; `At` in nanoseconds.
type entry struct {
	At       int64             `json:"at"`
	Line     string            `json:"line"`
	Labels   map[string]string `json:"labels"`
	Metadata map[string]string `json:"metadata"`
}

type query struct {
	Query string `json:"query"`
	Start int64  `json:"start"`
	End   int64  `json:"end"`
	Step  int64  `json:"step"`
}

type question struct {
	Entries []entry `json:"entries"`
	// Pipeline is Promtail's `pipeline_stages`, as YAML: the entries after it are the answer.
	Pipeline string `json:"pipeline"`
	// Parse holds queries that are only parsed.
	Parse []string `json:"parse"`
	// Queries are run over the entries.
	Queries []query `json:"queries"`
	// Rules is a file of alert rules, run over the entries from Start to End in steps of Interval nanoseconds.
	Rules    string `json:"rules"`
	Start    int64  `json:"start"`
	End      int64  `json:"end"`
	Interval int64  `json:"interval"`
}

type series struct {
	Labels map[string]string `json:"labels"`
	Points [][2]float64      `json:"points"`
}

type result struct {
	Error  string   `json:"error,omitempty"`
	Series []series `json:"series,omitempty"`
	Lines  []string `json:"lines,omitempty"`
}

type alert struct {
	Name        string            `json:"name"`
	At          int64             `json:"at"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

type answer struct {
	Entries []entry  `json:"entries,omitempty"`
	Parsed  []string `json:"parsed,omitempty"`
	Results []result `json:"results,omitempty"`
	Alerts  []alert  `json:"alerts,omitempty"`
	// Faults are the alert rules that could not be evaluated.
	Faults map[string]string `json:"faults,omitempty"`
}

func main() {
	var asked question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		fail(err)
	}
	told, err := reply(asked)
	if err != nil {
		fail(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(told); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func reply(asked question) (answer, error) {
	var told answer
	var err error
	if asked.Pipeline != "" {
		told.Entries, err = through(asked.Pipeline, asked.Entries)
		return told, err
	}
	for _, text := range asked.Parse {
		told.Parsed = append(told.Parsed, parsed(text))
	}
	opts := logql.EngineOpts{MaxLookBackPeriod: 30 * time.Second}
	engine := logql.NewEngine(opts, store{streams(asked.Entries)}, limits{}, nil)
	for _, one := range asked.Queries {
		told.Results = append(told.Results, run(engine, one))
	}
	if asked.Rules != "" {
		told.Alerts, told.Faults, err = watch(engine, asked)
	}
	return told, err
}

// parsed returns what Loki says against a query, nothing where it is good.
func parsed(text string) string {
	if _, err := syntax.ParseExpr(text); err != nil {
		return err.Error()
	}
	return ""
}

// through runs entries through a pipeline of Promtail's stages.
func through(text string, entries []entry) ([]entry, error) {
	var config stages.PipelineStages
	if err := yaml.Unmarshal([]byte(text), &config); err != nil {
		return nil, err
	}
	for i, stage := range config {
		config[i] = stages.PipelineStage(stage.(map[interface{}]interface{}))
	}
	pipeline, err := stages.NewPipeline(log.NewNopLogger(), config, nil, prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	in := make(chan stages.Entry)
	go func() {
		defer close(in)
		for _, one := range entries {
			in <- incoming(one)
		}
	}()
	var out []entry
	for one := range pipeline.Run(in) {
		out = append(out, outgoing(one))
	}
	return out, nil
}

func incoming(one entry) stages.Entry {
	given := model.LabelSet{}
	for name, value := range one.Labels {
		given[model.LabelName(name)] = model.LabelValue(value)
	}
	return stages.Entry{
		Extracted: map[string]interface{}{},
		Entry: api.Entry{
			Labels: given,
			Entry:  logproto.Entry{Timestamp: time.Unix(0, one.At), Line: one.Line},
		},
	}
}

func outgoing(one stages.Entry) entry {
	out := entry{one.Timestamp.UnixNano(), one.Line, map[string]string{}, map[string]string{}}
	for name, value := range one.Labels {
		out.Labels[string(name)] = string(value)
	}
	for _, pair := range one.StructuredMetadata {
		out.Metadata[pair.Name] = pair.Value
	}
	return out
}

// run evaluates one query; an instant one where the step is 0.
func run(engine *logql.QueryEngine, one query) result {
	params, err := logql.NewLiteralParams(
		one.Query, time.Unix(0, one.Start), time.Unix(0, one.End), time.Duration(one.Step), 0,
		logproto.FORWARD, 1_000_000, nil, nil,
	)
	if err != nil {
		return result{Error: err.Error()}
	}
	found, err := engine.Query(params).Exec(tenant())
	if err != nil {
		return result{Error: err.Error()}
	}
	return shown(found)
}

func tenant() context.Context {
	return user.InjectOrgID(context.Background(), "tests")
}

func shown(found logqlmodel.Result) result {
	var out result
	switch data := found.Data.(type) {
	case promql.Vector:
		for _, sample := range data {
			point := [2]float64{float64(sample.T) / 1000, sample.F}
			out.Series = append(out.Series, series{sample.Metric.Map(), [][2]float64{point}})
		}
	case promql.Matrix:
		for _, line := range data {
			points := [][2]float64{}
			for _, point := range line.Floats {
				points = append(points, [2]float64{float64(point.T) / 1000, point.F})
			}
			out.Series = append(out.Series, series{line.Metric.Map(), points})
		}
	case logqlmodel.Streams:
		for _, stream := range data {
			for _, one := range stream.Entries {
				out.Lines = append(out.Lines, one.Line)
			}
		}
	default:
		out.Error = fmt.Sprintf("an answer of another kind: %T", data)
	}
	return out
}

// limits are those that Loki has when nobody sets any, as far as a test meets them.
type limits struct{}

func (limits) MaxQuerySeries(context.Context, string) int                        { return 500 }
func (limits) MaxQueryRange(context.Context, string) time.Duration               { return 0 }
func (limits) QueryTimeout(context.Context, string) time.Duration                { return time.Minute }
func (limits) BlockedQueries(context.Context, string) []*validation.BlockedQuery { return nil }
func (limits) EnableMultiVariantQueries(string) bool                             { return false }
func (limits) MaxScanTaskParallelism(string) int                                 { return 0 }
func (limits) DebugEngineTasks(string) bool                                      { return false }
func (limits) DebugEngineStreams(string) bool                                    { return false }
