-- CreateEnum
CREATE TYPE "Mood" AS ENUM ('WELL', 'UNWELL');

-- AlterTable
ALTER TABLE "Author" ADD COLUMN "mood" "Mood" NOT NULL DEFAULT 'WELL';
