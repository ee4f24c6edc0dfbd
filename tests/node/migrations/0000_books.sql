CREATE TABLE "book" ("title" text PRIMARY KEY NOT NULL, "pages" integer NOT NULL);
--> statement-breakpoint
CREATE INDEX "by_pages" ON "book" ("pages");
