// One table's changes into one topic by go-pq-cdc-kafka: the row as JSON, keyed by its primary key as ours.
// The settings come as JSON in the first argument. Slot and publication exist.
package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"time"

	cdc "github.com/Trendyol/go-pq-cdc-kafka"
	"github.com/Trendyol/go-pq-cdc-kafka/config"
	source "github.com/Trendyol/go-pq-cdc/config"
	"github.com/Trendyol/go-pq-cdc/pq/publication"
	"github.com/Trendyol/go-pq-cdc/pq/slot"
	kafka "github.com/segmentio/kafka-go"
)

type settings struct {
	Host, User, Password, Database           string
	Slot, Publication, Schema, Table         string
	Topic, Bootstrap                         string
	Key                                      []string
	MetricPort, BatchSize, BatchMilliseconds int
}

const (
	allReplicas = -1
	lz4         = 3
)

func main() {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	var given settings
	if err := json.Unmarshal([]byte(os.Args[1]), &given); err != nil {
		fail("settings", err)
	}
	connector, err := cdc.NewConnector(context.Background(), configuration(given), handler(given.Key))
	if err != nil {
		fail("new connector", err)
	}
	defer connector.Close()
	connector.Start(context.Background())
}

func configuration(given settings) config.Connector {
	return config.Connector{
		CDC: source.Config{
			Host: given.Host, Username: given.User, Password: given.Password, Database: given.Database,
			Publication: publication.Config{
				Name: given.Publication,
				Operations: publication.Operations{
					publication.OperationInsert, publication.OperationUpdate,
					publication.OperationDelete, publication.OperationTruncate,
				},
				Tables: publication.Tables{{
					Schema: given.Schema, Name: given.Table, ReplicaIdentity: publication.ReplicaIdentityDefault,
				}},
			},
			Slot:   slot.Config{Name: given.Slot, SlotActivityCheckerInterval: 1000},
			Metric: source.MetricConfig{Port: given.MetricPort},
			Logger: source.LoggerConfig{LogLevel: slog.LevelWarn},
		},
		Kafka: config.Kafka{
			TableTopicMapping:           map[string]string{given.Schema + "." + given.Table: given.Topic},
			Brokers:                     []string{given.Bootstrap},
			Balancer:                    "Murmur2Balancer",
			RequiredAcks:                allReplicas,
			Compression:                 lz4,
			ProducerBatchSize:           given.BatchSize,
			ProducerBatchTickerDuration: time.Duration(given.BatchMilliseconds) * time.Millisecond,
		},
	}
}

// handler makes one record a change; a delete's has no value.
func handler(columns []string) cdc.Handler {
	return func(message *cdc.Message) []kafka.Message {
		if message.Type.IsDelete() {
			return []kafka.Message{{Key: key(columns, message.OldData)}}
		}
		return []kafka.Message{{Key: key(columns, message.NewData), Value: encoded(message.NewData)}}
	}
}

func key(columns []string, row map[string]any) []byte {
	values := make(map[string]any, len(columns))
	for _, column := range columns {
		values[column] = row[column]
	}
	return encoded(values)
}

func encoded(value map[string]any) []byte {
	text, err := json.Marshal(value)
	if err != nil {
		fail("encoding", err)
	}
	return text
}

func fail(what string, err error) {
	slog.Error(what, "error", err)
	os.Exit(1)
}
