BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE attempts (
	run_id VARCHAR(32) NOT NULL, 
	number INTEGER NOT NULL, 
	submitted_at DATETIME, 
	created_at DATETIME NOT NULL, 
	ended_at DATETIME, 
	event_seq INTEGER NOT NULL, 
	device_seconds DOUBLE NOT NULL, 
	flops DOUBLE NOT NULL, 
	training_images INTEGER NOT NULL, 
	PRIMARY KEY (run_id, number), 
	FOREIGN KEY(run_id) REFERENCES runs (id)
);
INSERT INTO "attempts" VALUES('0mwva8hky72ned',1,'2026-11-24 22:44:49.119048','2026-11-24 22:44:48.805617','2026-11-24 22:44:49.648649',4,9.5,3000000000000.0,128);
INSERT INTO "attempts" VALUES('0mwva8hmq277cw',1,'2026-11-24 22:44:49.192548','2026-11-24 22:44:48.805621','2026-11-24 22:44:49.798128',2,4.0,0.0,0);
INSERT INTO "attempts" VALUES('0mwva8hn43ia96',1,'2026-11-24 22:44:49.251227','2026-11-24 22:44:48.805622',NULL,1,0.0,0.0,0);
CREATE TABLE events (
	id INTEGER NOT NULL, 
	run_id VARCHAR(32) NOT NULL, 
	seq INTEGER NOT NULL, 
	at DATETIME NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	body JSON NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(run_id) REFERENCES runs (id), 
	CONSTRAINT uq_events_run_id_seq UNIQUE (run_id, seq)
);
INSERT INTO "events" VALUES(1,'0mwva8hky72ned',1,'2026-11-24 22:44:48.541834','state','{"state": "QUEUED", "reason": null, "attempt": 0, "message": null}');
INSERT INTO "events" VALUES(2,'0mwva8hmq277cw',1,'2026-11-24 22:44:48.579754','state','{"state": "QUEUED", "reason": null, "attempt": 0, "message": null}');
INSERT INTO "events" VALUES(3,'0mwva8hn43ia96',1,'2026-11-24 22:44:48.593643','state','{"state": "QUEUED", "reason": null, "attempt": 0, "message": null}');
INSERT INTO "events" VALUES(4,'0mwva8hky72ned',2,'2026-11-24 22:44:48.948760','state','{"state": "STARTING", "reason": null, "attempt": 1, "message": null}');
INSERT INTO "events" VALUES(5,'0mwva8hmq277cw',2,'2026-11-24 22:44:48.948766','state','{"state": "STARTING", "reason": null, "attempt": 1, "message": null}');
INSERT INTO "events" VALUES(6,'0mwva8hn43ia96',2,'2026-11-24 22:44:48.948766','state','{"state": "STARTING", "reason": null, "attempt": 1, "message": null}');
INSERT INTO "events" VALUES(7,'0mwva8hky72ned',3,'2026-11-24 22:44:49.413751','attempt','{"run_id": "0mwva8hky72ned", "attempt": 1, "seq": 1, "at": 1795560289.296169, "body": {"type": "attempt_started", "host": "h", "pid": 1, "device": "cpu", "versions": {}}}');
INSERT INTO "events" VALUES(8,'0mwva8hky72ned',4,'2026-11-24 22:44:49.413754','state','{"state": "RUNNING", "reason": null, "attempt": 1, "message": null}');
INSERT INTO "events" VALUES(9,'0mwva8hky72ned',5,'2026-11-24 22:44:49.464294','attempt','{"run_id": "0mwva8hky72ned", "attempt": 1, "seq": 2, "at": 1795560289.3108683, "body": {"type": "progress", "stage": "finetune", "step": 3, "total_steps": 8, "seconds_left": null, "values": {}, "spend": {"device_seconds": 2.0, "flops": 3000000000000.0, "training_images": 128}}}');
INSERT INTO "events" VALUES(10,'0mwva8hky72ned',6,'2026-11-24 22:44:49.546741','attempt','{"run_id": "0mwva8hky72ned", "attempt": 1, "seq": 3, "at": 1795560289.3144698, "body": {"type": "stage_done", "report": {"stage": "evaluate", "key": "k", "artifacts": {}, "metrics": {"fid40/fashion-cnn": 5.0, "num_params": 100.0, "flops_per_image": 1000.0}, "spend": {"device_seconds": 1.5, "flops": 3000000000000.0, "training_images": 0}, "stop_cause": "completed"}}}');
INSERT INTO "events" VALUES(11,'0mwva8hky72ned',7,'2026-11-24 22:44:49.723059','attempt','{"run_id": "0mwva8hky72ned", "attempt": 1, "seq": 4, "at": 1795560289.3283436, "body": {"type": "attempt_succeeded", "spend": {"device_seconds": 9.5, "flops": 0.0, "training_images": 0}}}');
INSERT INTO "events" VALUES(12,'0mwva8hky72ned',8,'2026-11-24 22:44:49.724093','state','{"state": "SUCCEEDED", "reason": null, "attempt": 1, "message": null}');
INSERT INTO "events" VALUES(13,'0mwva8hmq277cw',3,'2026-11-24 22:44:49.745595','attempt','{"run_id": "0mwva8hmq277cw", "attempt": 1, "seq": 1, "at": 1795560289.3328257, "body": {"type": "attempt_started", "host": "h", "pid": 1, "device": "cpu", "versions": {}}}');
INSERT INTO "events" VALUES(14,'0mwva8hmq277cw',4,'2026-11-24 22:44:49.745597','state','{"state": "RUNNING", "reason": null, "attempt": 1, "message": null}');
INSERT INTO "events" VALUES(15,'0mwva8hmq277cw',5,'2026-11-24 22:44:49.802446','attempt','{"run_id": "0mwva8hmq277cw", "attempt": 1, "seq": 2, "at": 1795560289.3470378, "body": {"type": "attempt_failed", "reason": "diverged", "message": "a loss of nan", "spend": {"device_seconds": 4.0, "flops": 0.0, "training_images": 0}}}');
INSERT INTO "events" VALUES(16,'0mwva8hmq277cw',6,'2026-11-24 22:44:49.802450','state','{"state": "FAILED", "reason": "diverged", "attempt": 1, "message": "a loss of nan"}');
INSERT INTO "events" VALUES(17,'0mwva8hn43ia96',3,'2026-11-24 22:44:49.821765','attempt','{"run_id": "0mwva8hn43ia96", "attempt": 1, "seq": 1, "at": 1795560289.3546426, "body": {"type": "attempt_started", "host": "h", "pid": 1, "device": "cpu", "versions": {}}}');
INSERT INTO "events" VALUES(18,'0mwva8hn43ia96',4,'2026-11-24 22:44:49.821767','state','{"state": "RUNNING", "reason": null, "attempt": 1, "message": null}');
INSERT INTO "events" VALUES(19,'0mwva8imld2ebb',1,'2026-11-24 22:44:49.870942','state','{"state": "QUEUED", "reason": null, "attempt": 0, "message": null}');
CREATE TABLE experiments (
	id INTEGER NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	backbone VARCHAR(200) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	protocol_digest VARCHAR(64) NOT NULL, 
	spec JSON NOT NULL, 
	idempotency_key VARCHAR(255), 
	request_digest VARCHAR(64) NOT NULL, 
	created_at DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (idempotency_key)
);
INSERT INTO "experiments" VALUES(1,'done','testbed/dit-fashion','f9de90bd097b2d57c128975bcda0482d683574ad7be7b19a532171449a950595','6e6aa994e89574f4b2f23f2b308d7929c4e46e49833177339eefe2b29a4c55ed','{"name": "done", "design": {"backbone": {"name": "testbed/dit-fashion", "digest": "dc69d050ebfa9e415b378633fe3b55ea3b15616e9933e71822bf224f42b99953"}, "edits": [{"site": {"block": 1, "slot": "attention"}, "operator": {"kind": "hyena_x", "kernel_size": 4}, "init": "random"}, {"site": {"block": 3, "slot": "attention"}, "operator": {"kind": "hyena_x", "kernel_size": 4}, "init": "random"}]}, "distill": {"steps": 6, "batch_size": 16, "learning_rate": 0.002, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "attention_loss": "l1", "mlp_loss": "l2", "images": 200, "held_out": 16, "seed": 0}, "finetune": {"steps": 8, "batch_size": 16, "learning_rate": 0.0003, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "ema_decay": 0.98, "label_dropout": 0.1, "images": 200, "seed": 0}, "evaluate": {"samples": 40, "sampler": "ddim", "sampling_steps": 3, "guidance": 1.5, "guidance_channels": "all", "labels": "balanced", "feature_network": "fashion-cnn", "micro_batch": 10, "seed": 0}, "budget": {"device_seconds": null, "flops": null, "training_images": null}, "resources": {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0}}','done','0000000000000000000000000000000000000000000000000000000000000000','2026-11-24 22:44:48.534930');
INSERT INTO "experiments" VALUES(2,'failed','testbed/dit-fashion','fd696567bcd4f61864535aa7aa9955fe31e8108056f942eed5df37dddd258c6d','6e6aa994e89574f4b2f23f2b308d7929c4e46e49833177339eefe2b29a4c55ed','{"name": "failed", "design": {"backbone": {"name": "testbed/dit-fashion", "digest": "dc69d050ebfa9e415b378633fe3b55ea3b15616e9933e71822bf224f42b99953"}, "edits": [{"site": {"block": 2, "slot": "attention"}, "operator": {"kind": "hyena_x", "kernel_size": 4}, "init": "random"}]}, "distill": {"steps": 6, "batch_size": 16, "learning_rate": 0.002, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "attention_loss": "l1", "mlp_loss": "l2", "images": 200, "held_out": 16, "seed": 0}, "finetune": {"steps": 8, "batch_size": 16, "learning_rate": 0.0003, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "ema_decay": 0.98, "label_dropout": 0.1, "images": 200, "seed": 0}, "evaluate": {"samples": 40, "sampler": "ddim", "sampling_steps": 3, "guidance": 1.5, "guidance_channels": "all", "labels": "balanced", "feature_network": "fashion-cnn", "micro_batch": 10, "seed": 0}, "budget": {"device_seconds": null, "flops": null, "training_images": null}, "resources": {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0}}','failed','0000000000000000000000000000000000000000000000000000000000000000','2026-11-24 22:44:48.579000');
INSERT INTO "experiments" VALUES(3,'running','testbed/dit-fashion','64f7a0c5fd824d0068f4f5bc8343c45ccd6e41fbabf4502e842f61fb357cf501','6e6aa994e89574f4b2f23f2b308d7929c4e46e49833177339eefe2b29a4c55ed','{"name": "running", "design": {"backbone": {"name": "testbed/dit-fashion", "digest": "dc69d050ebfa9e415b378633fe3b55ea3b15616e9933e71822bf224f42b99953"}, "edits": [{"site": {"block": 4, "slot": "attention"}, "operator": {"kind": "hyena_x", "kernel_size": 4}, "init": "random"}]}, "distill": {"steps": 6, "batch_size": 16, "learning_rate": 0.002, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "attention_loss": "l1", "mlp_loss": "l2", "images": 200, "held_out": 16, "seed": 0}, "finetune": {"steps": 8, "batch_size": 16, "learning_rate": 0.0003, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "ema_decay": 0.98, "label_dropout": 0.1, "images": 200, "seed": 0}, "evaluate": {"samples": 40, "sampler": "ddim", "sampling_steps": 3, "guidance": 1.5, "guidance_channels": "all", "labels": "balanced", "feature_network": "fashion-cnn", "micro_batch": 10, "seed": 0}, "budget": {"device_seconds": null, "flops": null, "training_images": null}, "resources": {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0}}','running','0000000000000000000000000000000000000000000000000000000000000000','2026-11-24 22:44:48.593093');
INSERT INTO "experiments" VALUES(4,'waiting','testbed/dit-fashion','ca424a63490d93ba6666f4758584455d8b0dc7424818b83dab90913fd947ab89','6e6aa994e89574f4b2f23f2b308d7929c4e46e49833177339eefe2b29a4c55ed','{"name": "waiting", "design": {"backbone": {"name": "testbed/dit-fashion", "digest": "dc69d050ebfa9e415b378633fe3b55ea3b15616e9933e71822bf224f42b99953"}, "edits": [{"site": {"block": 5, "slot": "attention"}, "operator": {"kind": "hyena_x", "kernel_size": 4}, "init": "random"}]}, "distill": {"steps": 6, "batch_size": 16, "learning_rate": 0.002, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "attention_loss": "l1", "mlp_loss": "l2", "images": 200, "held_out": 16, "seed": 0}, "finetune": {"steps": 8, "batch_size": 16, "learning_rate": 0.0003, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "ema_decay": 0.98, "label_dropout": 0.1, "images": 200, "seed": 0}, "evaluate": {"samples": 40, "sampler": "ddim", "sampling_steps": 3, "guidance": 1.5, "guidance_channels": "all", "labels": "balanced", "feature_network": "fashion-cnn", "micro_batch": 10, "seed": 0}, "budget": {"device_seconds": null, "flops": null, "training_images": null}, "resources": {"workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 0}}','waiting','0000000000000000000000000000000000000000000000000000000000000000','2026-11-24 22:44:49.870317');
CREATE TABLE runs (
	id VARCHAR(32) NOT NULL, 
	experiment_id INTEGER NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	reason VARCHAR(32), 
	message VARCHAR(500), 
	attempt INTEGER NOT NULL, 
	last_event INTEGER NOT NULL, 
	not_before DATETIME, 
	created_at DATETIME NOT NULL, 
	started_at DATETIME, 
	ended_at DATETIME, 
	cancel_requested_at DATETIME, 
	stage VARCHAR(16), 
	step INTEGER NOT NULL, 
	total_steps INTEGER NOT NULL, 
	seconds_left FLOAT, 
	mlflow_url VARCHAR(500), 
	PRIMARY KEY (id), 
	FOREIGN KEY(experiment_id) REFERENCES experiments (id)
);
INSERT INTO "runs" VALUES('0mwva8hky72ned',1,'SUCCEEDED',NULL,NULL,1,8,NULL,'2026-11-24 22:44:48.540084','2026-11-24 22:44:49.412707','2026-11-24 22:44:49.723803',NULL,'finetune',3,8,NULL,NULL);
INSERT INTO "runs" VALUES('0mwva8hmq277cw',2,'FAILED','diverged','a loss of nan',1,6,NULL,'2026-11-24 22:44:48.579302','2026-11-24 22:44:49.745116','2026-11-24 22:44:49.798150',NULL,NULL,0,0,NULL,NULL);
INSERT INTO "runs" VALUES('0mwva8hn43ia96',3,'RUNNING',NULL,NULL,1,4,NULL,'2026-11-24 22:44:48.593315','2026-11-24 22:44:49.821316',NULL,NULL,NULL,0,0,NULL,NULL);
INSERT INTO "runs" VALUES('0mwva8imld2ebb',4,'QUEUED',NULL,NULL,0,1,NULL,'2026-11-24 22:44:49.870600',NULL,NULL,NULL,NULL,0,0,NULL,NULL);
CREATE TABLE scheduler_lease (
	id INTEGER NOT NULL, 
	holder VARCHAR(64) NOT NULL, 
	until FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "scheduler_lease" VALUES(1,'vm-31956-53ba7374',1.79556030436500096321e+09);
CREATE TABLE stage_reports (
	run_id VARCHAR(32) NOT NULL, 
	stage VARCHAR(16) NOT NULL, 
	attempt INTEGER NOT NULL, 
	report JSON NOT NULL, 
	PRIMARY KEY (run_id, stage), 
	FOREIGN KEY(run_id) REFERENCES runs (id)
);
INSERT INTO "stage_reports" VALUES('0mwva8hky72ned','evaluate',1,'{"stage": "evaluate", "key": "k", "artifacts": {}, "metrics": {"fid40/fashion-cnn": 5.0, "num_params": 100.0, "flops_per_image": 1000.0}, "spend": {"device_seconds": 1.5, "flops": 3000000000000.0, "training_images": 0}, "stop_cause": "completed"}');
CREATE TABLE tracking_cursors (
	run_id VARCHAR(32) NOT NULL, 
	mlflow_run_id VARCHAR(64), 
	last_seq INTEGER NOT NULL, 
	closed BOOLEAN NOT NULL, 
	PRIMARY KEY (run_id), 
	FOREIGN KEY(run_id) REFERENCES runs (id)
);
CREATE INDEX ix_experiments_digest ON experiments (digest);
CREATE INDEX ix_runs_created_at ON runs (created_at);
CREATE INDEX ix_runs_state_created_at ON runs (state, created_at);
COMMIT;
